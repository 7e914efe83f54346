/* The data step of an operator that acts on rows and columns apart: y = R x T^T in
 * every channel, R (p, h), T (q, w).
 *
 * With thin decompositions R = U_R diag(s) V_R^T and T = U_T diag(t) V_T^T and
 * d[i, j] = s[i] t[j]:
 *
 *     prox   x = v + V_R [d (U_R^T (y - A v) U_T) / (d^2 + rho)] V_T^T
 *     pinv   x = V_R [(U_R^T y U_T) / d] V_T^T, entries of d at most cutoff max(d)
 *            dropped
 *
 * The prox is (d (U_R^T y U_T) + rho V_R^T v V_T) / (d^2 + rho) in the singular
 * vectors, written as a change of v: what A does not see stays as it is, no complement
 * of V is needed, and A v comes from the operator itself.  Singular values of R or T
 * that are rounding of their largest (at most max(p, h) * 2.2e-16 of it) count as 0.
 *
 * A dense matrix is the case without T. */
#ifndef DSG_SEPARABLE_H
#define DSG_SEPARABLE_H

#include "dsg/data_step.h"

/* Longest shorter side of R and of T: a decomposition takes some (shorter side)^2 *
 * longer side * 10 operations. */
#define DSG_SEPARABLE_MOST 2048

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/separable.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/separable.inc.h"
#undef DSG_PRECISION

#endif
