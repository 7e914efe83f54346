#include "dsg/blur.h"

#include "op_checks.h"

static long
reflected(long q, long n)
{
    q = labs(q);
    return q < n ? q : 2 * (n - 1) - q;
}

/* The definition: centre kh / 2, kw / 2, no flip, the border pixel not repeated. */
static void
ref_blur(double *y, const double *x, const double *kernel, long c, long h, long w,
         long kh, long kw)
{
    for (long p = 0; p < c; p++)
        for (long i = 0; i < h; i++)
            for (long j = 0; j < w; j++) {
                double sum = 0.0;
                for (long a = 0; a < kh; a++)
                    for (long b = 0; b < kw; b++)
                        sum += kernel[a * kw + b] *
                               x[(p * h + reflected(i + a - kh / 2, h)) * w +
                                 reflected(j + b - kw / 2, w)];
                y[(p * h + i) * w + j] = sum;
            }
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
            case ONE_CORNER: /* far from the centre: only one side is padded */
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
