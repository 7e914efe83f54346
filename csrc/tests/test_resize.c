#include "dsg/resize.h"

#include "op_checks.h"

/* The published recipe in its own words: 1-based coordinates, a field of view of
 * ceil(width) + 2 taps from the left boundary, normalised, indices mirrored.
 * matrix is (ceil(n / f), n), zero on entry. */
static double
keys_cubic(double x)
{
    double a = fabs(x), a2 = a * a, a3 = a2 * a;
    if (a <= 1.0)
        return 1.5 * a3 - 2.5 * a2 + 1.0;
    return a <= 2.0 ? -0.5 * a3 + 2.5 * a2 - 4.0 * a + 2.0 : 0.0;
}

static void
ref_resize_matrix(double *matrix, size_t n, size_t f)
{
    size_t out = (n + f - 1) / f, view = 4 * f + 2;
    double scale = 1.0 / (double)f;
    for (size_t o = 0; o < out; o++) {
        double shifted = (double)(o + 1) - ((double)out - (double)n * scale) / 2.0;
        double match = shifted / scale + 0.5 * (1.0 - 1.0 / scale);
        double left = floor(match - 4.0 / scale / 2.0), sum = 0.0;
        for (size_t t = 0; t < view; t++)
            sum += scale * keys_cubic(scale * (match - (left + (double)t)));
        for (size_t t = 0; t < view; t++) {
            double weight = scale * keys_cubic(scale * (match - (left + (double)t)));
            long i = (long)left + (long)t - 1, period = 2 * (long)n;
            i = ((i % period) + period) % period;
            i = i < (long)n ? i : period - 1 - i;
            matrix[o * n + (size_t)i] += weight / sum;
        }
    }
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_resize.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_resize.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_resize_all_f32();
    test_resize_all_f64();
    return REPORT();
}
