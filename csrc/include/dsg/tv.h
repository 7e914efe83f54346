/* Isotropic total variation and its proximal map.
 *
 *     TV(x) = sum over pixels and channels of sqrt(dx^2 + dy^2)
 *
 * dx is the difference to the pixel on the right, dy to the one below; 0 in the last
 * column and row.  Coupled: one root for a pixel, over the squares of all its channels.
 * With D = (dx, dy), ||D||^2 <= 8,
 *
 *     prox(v) = argmin_x  1/2 ||x - v||^2 + weight TV(x) = v - weight D^T p,
 *
 * p in the unit ball of every pixel, found by the dual fast projected gradient.  What
 * is still missing after any number of iterations is the duality gap of x = v - weight
 * D^T p,
 *
 *     gap = 1/2 ||x - v||^2 + weight TV(x) - (1/2 ||v||^2 - 1/2 ||x||^2)
 *         = weight (TV(x) - <p, D x>)  >=  1/2 ||x - prox(v)||^2.
 *
 * Beck, Teboulle, "Fast gradient-based algorithms for constrained total variation image
 * denoising and deblurring problems", IEEE TIP 2009. */
#ifndef DSG_TV_H
#define DSG_TV_H

#include <stdbool.h>

#include "dsg/op.h"

typedef struct dsg_tv_options {
    double weight;     /* > 0 */
    size_t iterations; /* >= 1 */
    bool coupled;
} dsg_tv_options;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/tv.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/tv.inc.h"
#undef DSG_PRECISION

#endif
