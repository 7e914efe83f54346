/* Phase retrieval: the magnitude of the Fourier transform of the zero-padded image.
 *
 *     u = scale x + shift                        (1, 0), or (1/2, 1/2) for [0, 1]
 *     z = fftshift(F pad(u)),  F orthonormal     pad zeros on all four sides
 *     y = |z|                                    (c, h + 2 pad, w + 2 pad)
 *
 *     J(x)^T v = scale Re crop(F^H [v z / |z|]),  z / |z| = 0 where z = 0
 *
 * There, |z| below 1.1e-19 (double: 1.5e-154), the square of which is no normal number,
 * counts as 0.
 *
 * A real image has |z(-k)| = |z(k)|: half the plane is computed, and only the part of v
 * that is even matters.  Where the image lies in the padding only turns phases. */
#ifndef DSG_PHASE_H
#define DSG_PHASE_H

#include "dsg/op.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/phase.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/phase.inc.h"
#undef DSG_PRECISION

#endif
