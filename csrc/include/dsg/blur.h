/* Blur: every channel is padded by reflection and correlated with one kernel.
 *
 *     y[i, j] = sum_{a, b} k[a, b] xpad[i + a, j + b]        (no flip)
 *
 *     xpad:   d c b | a b c d ... | ...        the border pixel is not repeated
 *
 * For a kernel of odd size s the pad is (s - 1) / 2 on both sides.  For an even s it is
 * s / 2 before and s / 2 - 1 after, so that y has the size of x and the kernel's centre
 * is entry s / 2.  The pads must be smaller than the image.
 *
 * The adjoint is the transposed correlation followed by folding the pad back: even for
 * a symmetric kernel it is not a second blur.
 *
 * Three forms compute the same thing; set-up takes the one expected to be fastest:
 *     separable   the kernel is a column times a row
 *     sparse      few taps differ from zero
 *     fft         anything else, on a padded grid of a size FFTW likes
 *
 * A kernel within 1e-6 (float) or 2.5e-7 (double) of a column times a row, relative to
 * its Frobenius norm, is replaced by that; sparse and fft take it as it is. */
#ifndef DSG_BLUR_H
#define DSG_BLUR_H

#include "dsg/op.h"

typedef enum dsg_blur_form {
    DSG_BLUR_AUTO = 0,
    DSG_BLUR_SEPARABLE = 1, /* DSG_EVALUE when the kernel is not separable */
    DSG_BLUR_SPARSE = 2,
    DSG_BLUR_FFT = 3,
} dsg_blur_form;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/blur.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/blur.inc.h"
#undef DSG_PRECISION

#endif
