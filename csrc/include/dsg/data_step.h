/* The exact data step of a linear operator, and what comes with it.
 *
 *     prox     x = argmin ||A x - y||^2 + rho ||x - v||^2,
 *              (A^T A + rho) x = A^T y + rho v                       rho > 0
 *     pinv     x = A^+ y, singular values below cutoff * norm counted as 0
 *     norm     the largest singular value of A
 *
 * In closed form where the operator's class offers one: masks are diagonal, circular
 * blurs are diagonal after an FFT, operators that act on rows and columns apart
 * (separable.h) are diagonal in the singular vectors of both sides.  Everything else by
 * conjugate gradients from v, the true residual being computed anew every 50
 * iterations; pinv is then (A^T A + delta)^-1 A^T y with delta = (cutoff norm)^2, and
 * the norm comes from a Lanczos iteration to 1e-6 (float: 1e-4) relative, anew in every
 * call of pinv and norm.
 *
 * Read-only once made, as an operator is: all calls may run in many threads at once. */
#ifndef DSG_DATA_STEP_H
#define DSG_DATA_STEP_H

#include "dsg/op.h"

/* When conjugate gradients stop: at the tolerance, after the iterations, or where
 * rounding ends all progress.  A closed form does not use them and takes NULL. */
typedef struct dsg_cg_options {
    double
        tolerance; /* of ||b - M x|| / ||b||, > 0; at least the precision's epsilon */
    size_t iterations;
} dsg_cg_options;

/* How they stopped; 0 and 0 for a closed form and for b = 0, where x = 0.  Data that
 * are not finite make x and the residual NaN. */
typedef struct dsg_cg_info {
    double residual; /* ||b - M x|| / ||b||, evaluated at the end */
    size_t iterations;
} dsg_cg_info;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/data_step.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/data_step.inc.h"
#undef DSG_PRECISION

#endif
