/* Updates between two network calls, one image of 3 x 256 x 256 floats, one thread.
 *
 *     make -C csrc build/release/bench_update && \
 *         DSG_NUM_THREADS=1 csrc/build/release/bench_update
 *
 * Minimum and median of 31 runs.  GB/s count every array once for reading and once for
 * writing; made noise is not counted.  Naive: one loop over the image for each formula
 * with recorded noise; the prox of TV by whole-image passes, as its formula says. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "dsg/mem.h"
#include "dsg/tv.h"
#include "dsg/update.h"

enum { C = 3, N = 256, RUNS = 31, ITERATIONS = 50 };
static const dsg_shape shape = {C, N, N};
static const size_t n = C * N * N;

static float *x, *a, *c, *g, *noise, *dual;
static double scale = 0.3;
static const uint32_t id = 0;
static const dsg_noise key = {.seed = 1, .image = &id, .sample = &id};

static const dsg_ddpm_options ddpm = {.c1 = 0.3, .c2 = 0.7, .minlog = -6, .maxlog = -1};
static const dsg_ddim_options ddim = {
    .alpha_bar = 0.4, .alpha_bar_next = 0.7, .std = 0.3};
static const dsg_ald_options ald = {.sigma = 1.5, .weight = 0.8, .eta = 0.2};
static const dsg_adam_options adam = {
    .step = 3, .lr = 1e-6, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8};
static dsg_tv_options tv = {.weight = 0.1, .iterations = ITERATIONS};

static float *
image(size_t count)
{
    float *out = dsg_alloc(count, sizeof *out);
    if (!out)
        exit(1);
    for (size_t i = 0; i < count; i++)
        out[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return out;
}

static dsg_status
renoise_made(void)
{
    return dsg_renoise_f32(x, 1, n, 0.9, 0.1, &key, NULL);
}
static dsg_status
renoise(void)
{
    return dsg_renoise_f32(x, 1, n, 0.9, 0.1, NULL, noise);
}
static dsg_status
ddpm_fixed(void)
{
    return dsg_ddpm_step_f32(x, a, NULL, g, &scale, 1, n, NULL, noise, &ddpm);
}
static dsg_status
ddpm_learned(void)
{
    return dsg_ddpm_step_f32(x, a, c, g, &scale, 1, n, NULL, noise, &ddpm);
}
static dsg_status
ddim_recorded(void)
{
    return dsg_ddim_step_f32(x, a, 1, n, NULL, noise, &ddim);
}
static dsg_status
ald_recorded(void)
{
    return dsg_ald_step_f32(x, a, g, 1, n, NULL, noise, &ald);
}
static dsg_status
adam_step(void)
{
    return dsg_adam_step_f32(x, a, c, g, 1, n, &adam);
}
static dsg_status
tv_prox(void)
{
    memset(dual, 0, 2 * n * sizeof *dual);
    return dsg_tv_prox_f32(x, a, dual, 1, shape, &tv);
}
static dsg_status
tv_coupled(void)
{
    tv.coupled = true;
    dsg_status err = tv_prox();
    tv.coupled = false;
    return err;
}
static dsg_status
tv_norm(void)
{
    double out;
    return dsg_tv_norm_f32(&out, a, 1, shape, false);
}

static dsg_status
naive_ddpm(void)
{
    for (size_t i = 0; i < n; i++) {
        float f = (c[i] + 1) / 2, l = f * -1.0f + (1 - f) * -6.0f;
        x[i] = 0.3f * a[i] + 0.7f * x[i] + expf(l / 2) * noise[i] - 0.3f * g[i];
    }
    return DSG_OK;
}
static dsg_status
naive_adam(void)
{
    float size = 1e-6f / (1 - powf(0.9f, 3)), root = sqrtf(1 - powf(0.99f, 3));
    for (size_t i = 0; i < n; i++)
        a[i] = 0.9f * a[i] + 0.1f * g[i];
    for (size_t i = 0; i < n; i++)
        c[i] = 0.99f * c[i] + 0.01f * g[i] * g[i];
    for (size_t i = 0; i < n; i++)
        x[i] -= size * a[i] / (sqrtf(c[i]) / root + 1e-8f);
    return DSG_OK;
}

static void
naive_primal(float *out, const float *p)
{
    const float w = 0.1f;
    for (size_t k = 0; k < n; k++) {
        size_t j = k % N, i = k / N % N;
        float d = 0;
        if (j)
            d += p[k - 1];
        if (j + 1 < N)
            d -= p[k];
        if (i)
            d += p[n + k - N];
        if (i + 1 < N)
            d -= p[n + k];
        out[k] = a[k] - w * d;
    }
}
static dsg_status
naive_prox(void)
{
    float *q = image(2 * n);
    memset(dual, 0, 2 * n * sizeof *dual);
    memset(q, 0, 2 * n * sizeof *q);
    double t = 1;
    for (int iteration = 0; iteration < ITERATIONS; iteration++) {
        double next = (1 + sqrt(1 + 4 * t * t)) / 2;
        float momentum = (float)((t - 1) / next);
        t = next;
        naive_primal(x, q);
        for (size_t k = 0; k < n; k++) {
            float u = q[k] + (k % N + 1 < N ? (x[k + 1] - x[k]) / 0.8f : 0);
            float v = q[n + k] + (k / N % N + 1 < N ? (x[k + N] - x[k]) / 0.8f : 0);
            float length = fmaxf(1.0f, sqrtf(u * u + v * v));
            u /= length;
            v /= length;
            q[k] = u + momentum * (u - dual[k]);
            q[n + k] = v + momentum * (v - dual[n + k]);
            dual[k] = u;
            dual[n + k] = v;
        }
    }
    naive_primal(x, dual);
    dsg_free(q);
    return DSG_OK;
}

static void
run(const char *name, dsg_status (*call)(void), double arrays)
{
    double seconds[RUNS];
    for (size_t i = 0; i < RUNS; i++) {
        double start = now();
        if (call())
            exit(1);
        seconds[i] = now() - start;
    }
    qsort(seconds, RUNS, sizeof *seconds, ascending);
    printf("%-26s min %8.3f ms  median %8.3f ms  %6.2f GB/s\n", name, 1e3 * seconds[0],
           1e3 * seconds[RUNS / 2],
           1e-9 * arrays * (double)n * sizeof(float) / seconds[0]);
}

int
main(void)
{
    x = image(n);
    a = image(n);
    c = image(n);
    g = image(n);
    noise = image(n);
    dual = image(2 * n);
    run("renoise, noise made", renoise_made, 2);
    run("renoise, recorded", renoise, 3);
    run("ddpm, fixed variance", ddpm_fixed, 5);
    run("ddpm, learned variance", ddpm_learned, 6);
    run("ddpm, learned, naive", naive_ddpm, 6);
    run("ddim", ddim_recorded, 4);
    run("ald", ald_recorded, 5);
    for (size_t i = 0; i < n; i++)
        c[i] *= c[i];
    run("adam", adam_step, 7);
    run("adam, naive", naive_adam, 7);
    run("tv norm", tv_norm, 1);
    /* v, p twice and q twice, read and written, an iteration */
    run("tv prox, 50 iterations", tv_prox, 9.0 * ITERATIONS);
    run("tv prox, coupled", tv_coupled, 9.0 * ITERATIONS);
    run("tv prox, naive", naive_prox, 9.0 * ITERATIONS);
    dsg_free(x);
    dsg_free(a);
    dsg_free(c);
    dsg_free(g);
    dsg_free(noise);
    dsg_free(dual);
    return 0;
}
