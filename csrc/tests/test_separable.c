#include "dsg/separable.h"

#include "data_step_checks.h"

static double *
random_matrix(size_t n, uint64_t *seed)
{
    double *a = malloc(n * sizeof *a);
    for (size_t i = 0; i < n; i++)
        a[i] = utest_random(seed);
    return a;
}

/* Correlation with a Gaussian of 25 taps, std 3, the border reflected; its singular
 * values fall to about 1e-7. */
static double *
gaussian_matrix(size_t n)
{
    double *a = calloc(n * n, sizeof *a), w[25], sum = 0.0;
    for (int i = -12; i <= 12; i++)
        sum += w[i + 12] = exp(-i * i / 18.0);
    for (size_t i = 0; i < n; i++)
        for (int t = -12; t <= 12; t++) {
            long j = labs((long)i + t);
            j = j < (long)n ? j : 2 * ((long)n - 1) - j;
            a[i * n + (size_t)j] += w[t + 12] / sum;
        }
    return a;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_separable.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_separable.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_separable_all_f32();
    test_separable_all_f64();
    return REPORT();
}
