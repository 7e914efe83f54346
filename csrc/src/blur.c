#include "dsg/blur.h"

#include <math.h>
#include <string.h>

#include "border.h"
#include "circular.h"
#include "dsg/fft.h"
#include "dsg/mem.h"
#include "dsg/separable.h"
#include "shape.h"

/* Outputs are computed in tiles of ROWS x LANES that stay in registers over all taps:
 * eight 64-byte vectors of float. */
enum { ROWS = 8, LANES = 16 };

/* The part of the kernel that is not zero, always with the centre. */
typedef struct support {
    size_t first_row, first_column; /* in the kernel */
    size_t h, w;
} support;

static support
find_support(const double *kernel, const dsg_blur_geometry *g)
{
    size_t a0 = g->centre_row, a1 = a0, b0 = g->centre_column, b1 = b0;
    for (size_t a = 0; a < g->kh; a++)
        for (size_t b = 0; b < g->kw; b++) {
            if (kernel[a * g->kw + b] == 0.0)
                continue;
            a0 = a < a0 ? a : a0;
            a1 = a > a1 ? a : a1;
            b0 = b < b0 ? b : b0;
            b1 = b > b1 ? b : b1;
        }
    return (support){
        .first_row = a0, .first_column = b0, .h = a1 - a0 + 1, .w = b1 - b0 + 1};
}

static dsg_shape
blurred_shape(dsg_shape s, const dsg_blur_geometry *g)
{
    return (dsg_shape){.c = s.c, .h = s.h + g->grow_h, .w = s.w + g->grow_w};
}

/* What create and the kernel's gradient ask of their arguments; `size` of a real. */
static dsg_status
check_geometry(dsg_shape s, const dsg_blur_geometry *g, size_t size)
{
    size_t n;
    if (!dsg_shape_valid(s, size) || g->kh == 0 || g->kw == 0)
        return DSG_ESHAPE;
    if (!dsg_mul(g->kh, g->kw, &n) || n > PTRDIFF_MAX / sizeof(double))
        return DSG_ESHAPE;
    if (g->centre_row >= g->kh || g->centre_column >= g->kw)
        return DSG_ESHAPE;
    if (g->grow_h > g->kh || g->grow_w > g->kw)
        return DSG_ESHAPE;
    if (!dsg_shape_valid(blurred_shape(s, g), size))
        return DSG_ESHAPE;
    if (g->border < DSG_BORDER_REFLECT || g->border > DSG_BORDER_REPLICATE)
        return DSG_EVALUE;
    if (g->border == DSG_BORDER_REFLECT) {
        size_t bottom = g->kh - 1 - g->centre_row + g->grow_h;
        size_t right = g->kw - 1 - g->centre_column + g->grow_w;
        if (g->centre_row >= s.h || bottom >= s.h || g->centre_column >= s.w ||
            right >= s.w)
            return DSG_ESHAPE;
    }
    return DSG_OK;
}

/* The row and the column through the largest entry span the only rank-one kernel it
 * can be: k = column row / largest.  True when that is within `tolerance` of k, both
 * in the Frobenius norm and relative to k's. */
static bool
is_separable(const double *kernel, size_t kh, size_t kw, double tolerance, size_t *row,
             size_t *column)
{
    size_t at = 0;
    double norm = 0.0, error = 0.0;
    for (size_t i = 0; i < kh * kw; i++)
        if (fabs(kernel[i]) > fabs(kernel[at]))
            at = i;
    *row = at / kw;
    *column = at % kw;
    double scale = fabs(kernel[at]);
    if (scale == 0.0)
        return true;
    for (size_t a = 0; a < kh; a++)
        for (size_t b = 0; b < kw; b++) {
            /* divided first: squares of entries near the limits of double are safe */
            double k = kernel[a * kw + b] / scale;
            double product = (kernel[a * kw + *column] / scale) *
                             (kernel[*row * kw + b] / kernel[at]);
            norm += k * k;
            error += (k - product) * (k - product);
        }
    return error <= tolerance * tolerance * norm;
}

static size_t
count_taps(const double *kernel, size_t n)
{
    size_t taps = 0;
    for (size_t i = 0; i < n; i++)
        taps += kernel[i] != 0.0;
    return taps;
}

/* Nanoseconds of one forward and one adjoint of one channel, in float; bench_ops
 * measures the constants (Zen 5, AVX-512; only their ratio matters). */
#define SPARSE_NS 0.025 /* per tap and output pixel */
#define FFT_NS 0.45     /* per grid point and log2 of the grid, four transforms */

/* h, w: of the padded image. */
static double
sparse_cost(dsg_shape out, size_t h, size_t w, size_t taps)
{
    return SPARSE_NS * (double)taps * ((double)out.h * out.w + (double)h * w);
}

/* Grid sides are multiples of 8: FFTW's real transforms of odd length are slow. */
static size_t
grid_side(size_t n)
{
    return 8 * dsg_fft_fast_size((n + 7) / 8);
}

static double
fft_cost(size_t h, size_t w)
{
    double grid = (double)grid_side(h) * (double)grid_side(w);
    return FFT_NS * grid * log2(grid);
}

static size_t
round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* For rows of w entries: an odd number of tiles keeps rows off each other's cache
 * sets. */
static size_t
row_stride(size_t w)
{
    size_t tiles = round_up(w, LANES) / LANES;
    return LANES * (tiles | 1);
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "blur.inc.h"
#include "blur_gradient.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "blur.inc.h"
#include "blur_gradient.inc.h"
#undef DSG_PRECISION
