#include "dsg/blur.h"

#include "op_checks.h"

enum { BORDERS = DSG_BORDER_REPLICATE + 1 };

/* The entry at place q of an axis of n, -1 for none. */
static long
shown(long q, long n, dsg_border border)
{
    if (border == DSG_BORDER_REFLECT) {
        q = labs(q);
        return q < n ? q : 2 * (n - 1) - q;
    }
    if (border == DSG_BORDER_CIRCULAR) {
        while (q < 0)
            q += n;
        while (q >= n)
            q -= n;
        return q;
    }
    if (border == DSG_BORDER_REPLICATE)
        return q < 0 ? 0 : q < n ? q : n - 1;
    return q < 0 || q >= n ? -1 : q;
}

static dsg_blur_geometry
centred(size_t kh, size_t kw, dsg_border border)
{
    return (dsg_blur_geometry){.kh = kh,
                               .kw = kw,
                               .centre_row = kh / 2,
                               .centre_column = kw / 2,
                               .border = border};
}

/* The pixel that stands at place (i, j) of a plane that goes on for ever. */
static double
pixel(const double *plane, dsg_shape s, long i, long j, dsg_border border)
{
    i = shown(i, (long)s.h, border);
    j = shown(j, (long)s.w, border);
    return i < 0 || j < 0 ? 0.0 : plane[i * (long)s.w + j];
}

/* The definition, one output at a time. */
static void
ref_blur(double *y, const double *x, const double *kernel, dsg_shape s,
         const dsg_blur_geometry *g)
{
    long kh = (long)g->kh, kw = (long)g->kw;
    long row = (long)g->centre_row, column = (long)g->centre_column;
    for (size_t p = 0; p < s.c; p++)
        for (long i = 0; i < (long)(s.h + g->grow_h); i++)
            for (long j = 0; j < (long)(s.w + g->grow_w); j++) {
                double sum = 0.0;
                for (long a = 0; a < kh; a++)
                    for (long b = 0; b < kw; b++)
                        sum += kernel[a * kw + b] * pixel(x + p * s.h * s.w, s,
                                                          i + a - row, j + b - column,
                                                          g->border);
                *y++ = sum;
            }
}

static void
ref_kernel_gradient(double *gradient, const double *x, const double *v, dsg_shape s,
                    const dsg_blur_geometry *g)
{
    long kh = (long)g->kh, kw = (long)g->kw;
    long row = (long)g->centre_row, column = (long)g->centre_column;
    for (long a = 0; a < kh; a++)
        for (long b = 0; b < kw; b++) {
            const double *at = v;
            double sum = 0.0;
            for (size_t p = 0; p < s.c; p++)
                for (long i = 0; i < (long)(s.h + g->grow_h); i++)
                    for (long j = 0; j < (long)(s.w + g->grow_w); j++)
                        sum += *at++ * pixel(x + p * s.h * s.w, s, i + a - row,
                                             j + b - column, g->border);
            gradient[a * kw + b] = sum;
        }
}

/* The most places of an axis that show the same entry. */
static size_t
most_shown(size_t n, size_t before, size_t after, dsg_border border)
{
    size_t most = 1;
    for (long j = 0; j < (long)n; j++) {
        size_t count = 0;
        for (long q = -(long)before; q < (long)(n + after); q++)
            count += shown(q, (long)n, border) == j;
        most = count > most ? count : most;
    }
    return most;
}

/* The same for pixels. */
static size_t
folds(dsg_shape s, const dsg_blur_geometry *g)
{
    size_t bottom = g->kh - 1 - g->centre_row + g->grow_h;
    size_t right = g->kw - 1 - g->centre_column + g->grow_w;
    return most_shown(s.h, g->centre_row, bottom, g->border) *
           most_shown(s.w, g->centre_column, right, g->border);
}

enum kernel_kind { GAUSSIAN, UNEVEN, FEW_TAPS, DENSE, ONE_CORNER, ZERO, KINDS };

static bool
kind_is_separable(enum kernel_kind kind)
{
    return kind == GAUSSIAN || kind == UNEVEN || kind == ONE_CORNER || kind == ZERO;
}

static void
make_kernel(double *kernel, size_t kh, size_t kw, enum kernel_kind kind, uint64_t *seed)
{
    double column[64], row[64];
    for (size_t a = 0; a < kh; a++)
        column[a] = utest_random(seed);
    for (size_t b = 0; b < kw; b++)
        row[b] = utest_random(seed);
    for (size_t a = 0; a < kh; a++)
        for (size_t b = 0; b < kw; b++) {
            double *k = &kernel[a * kw + b];
            double da = (double)a - (double)(kh / 2), db = (double)b - (double)(kw / 2);
            switch (kind) {
            case GAUSSIAN: /* zero outside a smaller support */
                *k = fabs(da) > 3 || fabs(db) > 2 ? 0 : exp(-(da * da + db * db) / 4);
                break;
            case UNEVEN:
                *k = column[a] * row[b];
                break;
            case FEW_TAPS:
                *k = utest_random(seed) > 0.5 ? utest_random(seed) : 0.0;
                break;
            case DENSE:
                *k = utest_random(seed);
                break;
            case ONE_CORNER: /* far from most centres: only one side is padded */
                *k = a == 0 && b == 0 ? -0.75 : 0.0;
                break;
            default:
                *k = 0.0;
            }
        }
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_blur.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_blur.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_blur_all_f32();
    test_blur_all_f64();
    return REPORT();
}
