/* Inpainting: y = M x, M = diag(mask), mask in {0, 1}, 1 = observed.
 *
 * M is its own adjoint and M M = M.  y has the size of x.  All of y must be finite,
 * masked entries too: they do not reach the gradient M (M x - y), but count in the
 * squared norm, where the residual of a masked entry is 0 - y. */
#ifndef DSG_MASK_H
#define DSG_MASK_H

#include "dsg/op.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/mask.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/mask.inc.h"
#undef DSG_PRECISION

#endif
