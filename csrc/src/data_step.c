#include "dsg/data_step.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "dsg/lapack.h"
#include "dsg/mem.h"
#include "dsg/rng.h"
#include "dsg/threads.h"
#include "sums.h"

/* Iterations between two evaluations of the true residual, and how many of those in a
 * row may bring nothing: at a condition of 1e8 some ten do before it goes on. */
enum { CHECK_EVERY = 50, MOST_STALLS = 20 };

/* Most steps of the Lanczos iteration, and where its first estimate is made. */
enum { MOST_STEPS = 4096, FIRST_STEPS = 8 };

static bool
positive(double x)
{
    return x > 0.0 && isfinite(x);
}

/* The largest singular value of the leading k columns of the bidiagonal matrix with
 * diagonal alpha and superdiagonal beta: root of the largest eigenvalue of B^T B, which
 * squaring does not harm.  work has 2 k doubles. */
static dsg_status
largest_value(double *value, const double *alpha, const double *beta, size_t k,
              double *work)
{
    double *d = work, *e = work + k;
    for (size_t i = 0; i < k; i++) {
        d[i] = alpha[i] * alpha[i] + (i ? beta[i - 1] * beta[i - 1] : 0.0);
        e[i] = alpha[i] * beta[i]; /* the last one is not read */
    }
    dsg_status err = dsg_sterf_f64(d, e, k);
    *value = sqrt(fmax(d[k - 1], 0.0));
    return err;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "data_step.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "data_step.inc.h"
#undef DSG_PRECISION
