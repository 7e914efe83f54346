/* What every operator must satisfy, whatever it computes.
 *
 * check_adjoint: outputs are written whole (they start as NaN), forward and vjp are
 * each other's adjoint, the residual gradient is what its parts give.
 * check_batch: a batch equals a loop bit for bit at any number of threads, and a failed
 * allocation is reported.
 * check_operator: both. */
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

#endif
