#include "dsg/blur.h"

#include <math.h>
#include <string.h>

#include "dsg/fft.h"
#include "dsg/mem.h"
#include "shape.h"

/* Outputs are computed in tiles of ROWS x LANES that stay in registers over all taps:
 * eight 64-byte vectors of float. */
enum { ROWS = 8, LANES = 16 };

/* The part of the kernel that is not zero, always with the centre: entry (a, b) of it
 * multiplies x[i + a - top, j + b - left]. */
typedef struct support {
    size_t first_row, first_column; /* in the kernel */
    size_t top, bottom, left, right;
} support;

static support
find_support(const double *kernel, size_t kh, size_t kw)
{
    size_t centre_row = kh / 2, centre_column = kw / 2;
    size_t a0 = centre_row, a1 = centre_row, b0 = centre_column, b1 = centre_column;
    for (size_t a = 0; a < kh; a++)
        for (size_t b = 0; b < kw; b++) {
            if (kernel[a * kw + b] == 0.0)
                continue;
            a0 = a < a0 ? a : a0;
            a1 = a > a1 ? a : a1;
            b0 = b < b0 ? b : b0;
            b1 = b > b1 ? b : b1;
        }
    return (support){.first_row = a0,
                     .first_column = b0,
                     .top = centre_row - a0,
                     .bottom = a1 - centre_row,
                     .left = centre_column - b0,
                     .right = b1 - centre_column};
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

static double
sparse_cost(dsg_shape s, const support *k, size_t taps)
{
    double inner = (double)s.h * s.w;
    double outer = (double)(s.h + k->top + k->bottom) * (s.w + k->left + k->right);
    return SPARSE_NS * taps * (inner + outer);
}

/* Grid sides are multiples of 8: FFTW's real transforms of odd length are slow. */
static size_t
grid_side(size_t n)
{
    return 8 * dsg_fft_fast_size((n + 7) / 8);
}

static double
fft_cost(dsg_shape s, const support *k)
{
    double grid = (double)grid_side(s.h + k->top + k->bottom) *
                  (double)grid_side(s.w + k->left + k->right);
    return FFT_NS * grid * log2(grid);
}

static size_t
round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "blur.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "blur.inc.h"
#undef DSG_PRECISION
