/* Blur: every channel is padded and correlated with one kernel.
 *
 *     y[i, j] = sum_{a, b} k[a, b] xpad[i + a - centre_row, j + b - centre_column]
 *                                                                    (no flip)
 *     border      x[-2] x[-1] | x[0] x[1] ..      on the right and below
 *     reflect          c   b  | a b c ..          the edge pixel is not repeated
 *     circular         y   z  | a b c .. x y z    the image repeats
 *     zero             0   0  | a b c ..
 *     replicate        a   a  | a b c ..          the edge pixel repeats
 *
 * The centre may be any entry of the kernel, and y may be larger than x by what is
 * asked: published codes with an even kernel of side s use centre s / 2 with y one
 * pixel larger (DPS, DMILO) or centre (s - 1) / 2 (DMPlug).  Under `reflect` no pad may
 * reach the image's size; the others take any.
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
 * its Frobenius norm, is replaced by that; sparse and fft take it as it is.  Where
 * derivatives in the kernel are wanted, ask for `exact`, the faster of these two.
 *
 * The data step has a closed form for the separable form (separable.h) and for circular
 * borders where y has the size of x (an FFT of that size, whatever the form). */
#ifndef DSG_BLUR_H
#define DSG_BLUR_H

#include "dsg/op.h"

typedef enum dsg_border {
    DSG_BORDER_REFLECT = 0,
    DSG_BORDER_CIRCULAR = 1,
    DSG_BORDER_ZERO = 2,
    DSG_BORDER_REPLICATE = 3,
} dsg_border;

typedef enum dsg_blur_form {
    DSG_BLUR_AUTO = 0,
    DSG_BLUR_SEPARABLE = 1, /* DSG_EVALUE when the kernel is not separable */
    DSG_BLUR_SPARSE = 2,
    DSG_BLUR_FFT = 3,
    DSG_BLUR_EXACT = 4, /* sparse or fft: the kernel as it is, entry by entry */
} dsg_blur_form;

/* What a kernel's entries stand for. */
typedef struct dsg_blur_geometry {
    size_t kh, kw;                    /* size of the kernel */
    size_t centre_row, centre_column; /* < kh, < kw */
    size_t grow_h, grow_w;            /* y is (h + grow_h, w + grow_w) */
    dsg_border border;
} dsg_blur_geometry;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/blur.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/blur.inc.h"
#undef DSG_PRECISION

#endif
