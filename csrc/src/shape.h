/* What every create function asks of a shape. */
#ifndef DSG_SHAPE_H
#define DSG_SHAPE_H

#include <stdint.h>

#include "dsg/mem.h"
#include "dsg/op.h"

/* True when c, h, w are not 0 and c * h * w elements of the given size can exist. */
static inline bool
dsg_shape_valid(dsg_shape s, size_t size)
{
    size_t n;
    if (s.c == 0 || s.h == 0 || s.w == 0)
        return false;
    if (!dsg_mul(s.c, s.h, &n) || !dsg_mul(n, s.w, &n) || !dsg_mul(n, size, &n))
        return false;
    return n <= PTRDIFF_MAX - DSG_ALIGN;
}

#endif
