/* What an operator is: y = A(x) on one image of fixed size, behind a table of
 * functions.
 *
 * Whoever uses an operator (the Langevin loop, the binding) knows only this header; an
 * operator is made by the create function of its own header (mask.h, blur.h, ...).
 *
 *     x    one image, dense row-major (in.c, in.h, in.w)
 *     y    one measurement, dense row-major (out.c, out.h, out.w)
 *
 * An operator is read-only once made: all calls may run in many threads at once, each
 * with its own workspace of dsg_op_workspace bytes, 64-byte aligned.  Outputs never
 * overlap inputs.  Sizes of 0 do not occur: create functions refuse them. */
#ifndef DSG_OP_H
#define DSG_OP_H

#include <stdbool.h>
#include <stddef.h>

#include "dsg/status.h"

typedef struct dsg_shape {
    size_t c, h, w;
} dsg_shape;

/* c * h * w; create functions have checked that it fits. */
static inline size_t
dsg_shape_size(dsg_shape s)
{
    return s.c * s.h * s.w;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/op.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/op.inc.h"
#undef DSG_PRECISION

#endif
