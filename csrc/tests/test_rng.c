/* Counter-based normals: moments, distribution, dependence on the key alone. */
#include "utest.h"

#include <stdlib.h>
#include <string.h>

#include "dsg/rng.h"
#include "dsg/sampler.h"
#include "dsg/threads.h"

enum { N = 1 << 22 };

static int
ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void
test_moments_and_distribution(void)
{
    float *x = malloc(N * sizeof *x);
    dsg_normal_f32(x, (dsg_noise_key){.seed = 7}, N);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag = 0;
    for (size_t i = 0; i < N; i++) {
        double v = x[i];
        m1 += v;
        m2 += v * v;
        m3 += v * v * v;
        m4 += v * v * v * v;
        lag += i ? v * x[i - 1] : 0;
    }
    /* five standard errors of each moment: sqrt(var / N), var = 1, 2, 15, 96, 1 */
    double se = 5 / sqrt((double)N);
    CHECK_NEAR(m1 / N, 0, se);
    CHECK_NEAR(m2 / N, 1, se * sqrt(2));
    CHECK_NEAR(m3 / N, 0, se * sqrt(15));
    CHECK_NEAR(m4 / N, 3, se * sqrt(96));
    CHECK_NEAR(lag / N, 0, se);

    /* Kolmogorov-Smirnov: 2.2 / sqrt(N) is exceeded with probability 1e-4 */
    qsort(x, N, sizeof *x, ascending);
    double d = 0;
    for (size_t i = 0; i < N; i++)
        d = fmax(d, fabs(0.5 * erfc(-x[i] / sqrt(2)) - (i + 0.5) / N));
    CHECK(d < 2.2 / sqrt((double)N));
    CHECK(x[0] > -6.7f && x[N - 1] < 6.7f && x[N - 1] > 4.5f);
    free(x);
}

static void
test_every_part_of_the_key_counts(void)
{
    dsg_noise_key keys[] = {
        {.seed = 1},   {.seed = 1ull << 32}, {.seed = 1, .image = 1},
        {.sample = 1}, {.draw = 1},          {.seed = 1, .sample = 1}};
    float a[2000], b[2000];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (size_t j = 0; j < i; j++) {
            dsg_normal_f32(a, keys[i], 2000);
            dsg_normal_f32(b, keys[j], 2000);
            double dot = 0;
            for (size_t k = 0; k < 2000; k++)
                dot += (double)a[k] * b[k];
            CHECK(fabs(dot) < 5 * sqrt(2000.0));
        }
}

static void
test_prefix_and_precision_do_not_change_the_draw(void)
{
    enum { M = 3 * DSG_NOISE_BLOCK + 17 };
    static float whole[M], part[M];
    static double wide[M];
    dsg_noise_key key = {.seed = 3, .image = 2, .sample = 1, .draw = 9};
    dsg_normal_f32(whole, key, M);
    dsg_normal_f64(wide, key, M);
    size_t sizes[] = {
        0, 1, 2, DSG_NOISE_BLOCK - 1, DSG_NOISE_BLOCK, DSG_NOISE_BLOCK + 1};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        memset(part, 0xff, sizeof part);
        dsg_normal_f32(part, key, sizes[s]);
        CHECK(memcmp(part, whole, sizes[s] * sizeof *part) == 0);
        CHECK(isnan(part[sizes[s]]));
    }
    for (size_t i = 0; i < M; i++)
        CHECK(wide[i] == (double)whole[i]);
}

static void
test_batch_equals_single_draws_at_any_thread_count(void)
{
    enum { B = 5, M = 1500 };
    uint32_t image[B] = {4, 0, 4, 7, 1}, sample[B] = {0, 0, 1, 3, 2};
    static float batch[B * M], one[M];
    dsg_noise noise = {.seed = 11, .image = image, .sample = sample, .draw = 6};
    for (size_t threads = 1; threads <= 4; threads += 3) {
        dsg_set_num_threads(threads);
        CHECK(dsg_normal_batch_f32(batch, B, M, &noise) == DSG_OK);
        for (size_t i = 0; i < B; i++) {
            dsg_normal_f32(one, (dsg_noise_key){11, image[i], sample[i], 6}, M);
            CHECK(memcmp(one, batch + i * M, sizeof one) == 0);
        }
    }
}

static void
test_uniforms_are_uniform_and_functions_of_their_key(void)
{
    enum { M = 1 << 16 };
    static float u[M];
    static uint32_t image[M], sample[M];
    static double batch[M];
    for (uint32_t i = 0; i < M; i++) {
        image[i] = i;
        sample[i] = i % 3;
    }
    dsg_noise noise = {.seed = 5, .image = image, .sample = sample, .draw = 7};
    dsg_uniform_batch(batch, M, &noise);
    double lag = 0;
    for (uint32_t i = 0; i < M; i++) {
        CHECK(batch[i] == dsg_uniform((dsg_noise_key){5, i, i % 3, 7}));
        CHECK(batch[i] > 0 && batch[i] < 1);
        u[i] = (float)batch[i];
        lag += i ? (batch[i] - 0.5) * (batch[i - 1] - 0.5) : 0;
    }
    /* five standard errors: each product has variance 1 / 144 */
    CHECK_NEAR(lag / M, 0, 5 / (12 * sqrt((double)M)));
    /* Kolmogorov-Smirnov: 2.2 / sqrt(M) is exceeded with probability 1e-4 */
    qsort(u, M, sizeof *u, ascending);
    double d = 0;
    for (size_t i = 0; i < M; i++)
        d = fmax(d, fabs(u[i] - (i + 0.5) / M));
    CHECK(d < 2.2 / sqrt((double)M));
    CHECK(dsg_uniform((dsg_noise_key){.draw = 1}) != dsg_uniform((dsg_noise_key){0}));
}

int
main(void)
{
    test_uniforms_are_uniform_and_functions_of_their_key();
    test_moments_and_distribution();
    test_every_part_of_the_key_counts();
    test_prefix_and_precision_do_not_change_the_draw();
    test_batch_equals_single_draws_at_any_thread_count();
    return REPORT();
}
