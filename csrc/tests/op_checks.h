/* What every operator must satisfy, whatever it computes.
 *
 * check_adjoint: outputs are written whole (they start as NaN), jvp and vjp are each
 * other's adjoint, the residual gradient is what its parts give; of a linear operator,
 * jvp is forward and curvature 0.
 * check_derivatives, in double: jvp and curvature are what finite differences of
 * forward and vjp say. check_batch: a batch equals a loop bit for bit at any number of
 * threads, x is asked for where it is needed and nowhere else, and a failed allocation
 * is reported. check_operator: all three. check_precisions: an operator in float does
 * what its twin in double does. */
#ifndef DSG_OP_CHECKS_H
#define DSG_OP_CHECKS_H

#include <float.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/op.h"
#include "dsg/threads.h"
#include "utest.h"

/* Runs `call`, a dsg_status, with the first, second, .. allocation failing until it
 * succeeds.  A failure has to be DSG_ENOMEM and to leave nothing behind. */
#define CHECK_ALLOCATION_FAILURES(call)                                        \
    do {                                                                       \
        dsg_status oom_status = DSG_ENOMEM;                                    \
        for (size_t oom_k = 1; oom_k < 100 && oom_status != DSG_OK; oom_k++) { \
            size_t oom_live = dsg_alloc_live();                                \
            dsg_fail_alloc_after(oom_k);                                       \
            oom_status = (call);                                               \
            dsg_fail_alloc_after(0);                                           \
            CHECK(oom_status == DSG_OK || oom_status == DSG_ENOMEM);           \
            CHECK(oom_status == DSG_OK || dsg_alloc_live() == oom_live);       \
        }                                                                      \
        CHECK(oom_status == DSG_OK);                                           \
    } while (0)

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "op_checks.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "op_checks.inc.h"
#undef DSG_PRECISION

/* |float - double| <= error for n entries. */
static inline void
check_twins(const float *got, const double *want, size_t n, double error)
{
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs(got[i] - want[i]);
        worst = d <= worst ? worst : d; /* a NaN gets in and stays */
    }
    CHECK_NEAR(worst, 0.0, error);
}

/* error: a bound on what float may do to an entry of any result; x is (in). */
static inline void
check_precisions(const dsg_op_f32 *op32, const dsg_op_f64 *op64, const float *x32,
                 double error, uint64_t seed)
{
    size_t n = dsg_shape_size(op32->in), m = dsg_shape_size(op32->out);
    float *v32 = random_array_f32(m, &seed), *w32 = random_array_f32(n, &seed);
    float *y32 = nan_array_f32(m), *g32 = nan_array_f32(n);
    double *x = malloc(n * sizeof *x), *v = malloc(m * sizeof *v);
    double *w = malloc(n * sizeof *w), *y = nan_array_f64(m), *g = nan_array_f64(n);
    void *ws32 = dsg_alloc(dsg_op_workspace_f32(op32), 1);
    void *ws = dsg_alloc(dsg_op_workspace_f64(op64), 1);
    for (size_t i = 0; i < n; i++) {
        x[i] = x32[i];
        w[i] = w32[i];
    }
    for (size_t i = 0; i < m; i++)
        v[i] = v32[i];
    dsg_op_forward_f32(op32, y32, x32, ws32);
    dsg_op_forward_f64(op64, y, x, ws);
    check_twins(y32, y, m, error);
    dsg_op_vjp_f32(op32, g32, x32, v32, ws32);
    dsg_op_vjp_f64(op64, g, x, v, ws);
    check_twins(g32, g, n, error);
    double got = dsg_op_residual_gradient_f32(op32, g32, x32, v32, ws32);
    double want = dsg_op_residual_gradient_f64(op64, g, x, v, ws);
    /* of a sum of m squares, each r^2 off by at most (2 |r| + error) error */
    CHECK_NEAR(got, want, error * (2 * sqrt(want * (double)m) + (double)m * error));
    check_twins(g32, g, n, 4 * error);
    dsg_op_jvp_f32(op32, y32, x32, w32, ws32);
    dsg_op_jvp_f64(op64, y, x, w, ws);
    check_twins(y32, y, m, error);
    dsg_op_curvature_f32(op32, g32, x32, v32, w32, ws32);
    dsg_op_curvature_f64(op64, g, x, v, w, ws);
    check_twins(g32, g, n, error);
    dsg_free(ws);
    dsg_free(ws32);
    free(v32);
    free(w32);
    free(y32);
    free(g32);
    free(x);
    free(v);
    free(w);
    free(y);
    free(g);
}

#endif
