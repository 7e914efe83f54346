/* Bicubic antialiased downsampling by an integer factor f.
 *
 * Separable.  Keys cubic (a = -0.5) stretched by f, centre-aligned; output o of an axis
 * of length n sits at the 1-based position
 *
 *     p(o) = (o + 1) f + (1 - f) / 2 + (n - f m) / 2,   o = 0..m - 1,  m = ceil(n / f)
 *
 * (the last term centres sizes that f does not divide), weights
 * cubic((p - tap) / f) / f, normalised to sum 1, zero weights dropped.
 *
 *     border:  b a | a b c ... y z | z y        the edge pixel is repeated
 *
 * Recipe of the Resizer of the published DPS code. */
#ifndef DSG_RESIZE_H
#define DSG_RESIZE_H

#include "dsg/op.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/resize.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/resize.inc.h"
#undef DSG_PRECISION

#endif
