/* A warp: every channel is sampled at displaced places, bilinearly.
 *
 *     y[i, j] = x(i + d[1, i, j], j + d[0, i, j])
 *
 * d[0] is the displacement to the right, d[1] down, both in pixels.  Outside the image
 * lies 0, as in torch's grid_sample(padding_mode="zeros", align_corners=True).  Linear
 * in x. */
#ifndef DSG_WARP_H
#define DSG_WARP_H

#include "dsg/op.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/warp.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/warp.inc.h"
#undef DSG_PRECISION

#endif
