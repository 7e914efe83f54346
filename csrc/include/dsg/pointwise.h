/* Operators that act on every value alone, y = f(x); J(x)^T v = f'(x) v.
 *
 *     clip     f(x) = min(max(a x, -1), 1); f' = a where |a x| <= 1, ends included,
 *              else 0: high dynamic range with a = 2
 *     encode   from linear light to a camera's response, both in [-1, 1]:
 *              f(x) = 2 g(u) - 1,  u = (x + 1) / 2,  g(u) = sign(u) |u|^(1 / a),
 *              a straight line through 0 for |u| < 1e-4, where the power is too steep
 *     decode   its inverse
 *
 * Where the straight line meets the power the line's slope is not the power's: f is
 * continuous there, f' is the power's.  f'' is 0 almost everywhere for clip. */
#ifndef DSG_POINTWISE_H
#define DSG_POINTWISE_H

#include "dsg/op.h"

typedef enum dsg_pointwise_kind {
    DSG_POINTWISE_CLIP = 0,
    DSG_POINTWISE_ENCODE = 1,
    DSG_POINTWISE_DECODE = 2,
} dsg_pointwise_kind;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/pointwise.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/pointwise.inc.h"
#undef DSG_PRECISION

#endif
