/* Phase retrieval, and the operators whose work is reading and writing: 3 x 256 x 256,
 * one thread.
 *
 *     make -C csrc build/release/bench_phase && csrc/build/release/bench_phase
 *
 * Minimum and median of 31 runs.  GFLOP/s count 5 n log2 n for each complex line that
 * the pruned transforms need, GB/s every array once.  Naive phase retrieval is the
 * plain 2-D real transform of the padded image, there and back; naive clip and mask are
 * one loop a value.  memcpy moves as many bytes as the operator next to it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "dsg/fft.h"
#include "dsg/mask.h"
#include "dsg/matrix.h"
#include "dsg/mem.h"
#include "dsg/phase.h"
#include "dsg/pointwise.h"
#include "dsg/warp.h"

enum {
    RUNS = 31,
    C = 3,
    N = 256,
    PAD = 64,
    PADDED = N + 2 * PAD,
    HALF = PADDED / 2 + 1
};

#define PIXELS ((size_t)C * N * N)
#define MEASURED ((size_t)C * PADDED * PADDED)

static double seconds[RUNS];

/* Runs `call` once to warm up, then RUNS times by the clock. */
#define TIME(call)                                        \
    do {                                                  \
        (call);                                           \
        for (size_t run = 0; run < RUNS; run++) {         \
            double start = now();                         \
            (call);                                       \
            seconds[run] = now() - start;                 \
        }                                                 \
        qsort(seconds, RUNS, sizeof *seconds, ascending); \
    } while (0)

static void
report(const char *name, double flops, double bytes)
{
    printf("%-34s min %8.4f ms  median %8.4f ms", name, seconds[0] * 1e3,
           seconds[RUNS / 2] * 1e3);
    if (flops > 0)
        printf("  %6.1f GFLOP/s", flops / seconds[0] * 1e-9);
    if (bytes > 0)
        printf("  %6.1f GB/s", bytes / seconds[0] * 1e-9);
    putchar('\n');
}

static float *
uniform(size_t n)
{
    float *x = get(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = 2.0f * (float)rand() / (float)RAND_MAX - 1.0f;
    return x;
}

/* ---- phase ---- */

static void
naive_phase_gradient(const dsg_fft_f32 *plan, float *g, const float *x, const float *y,
                     float *plane, float *spectrum)
{
    const float norm = 1.0f / PADDED;
    for (size_t c = 0; c < C; c++, x += N * N, g += N * N, y += PADDED * PADDED) {
        memset(plane, 0, PADDED * PADDED * sizeof *plane);
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < N; j++)
                plane[i * PADDED + j] = norm * (0.5f * x[i * N + j] + 0.5f);
        dsg_fft_forward_f32(plan, spectrum, plane);
        for (size_t k = 0; k < PADDED; k++)
            for (size_t l = 0; l < HALF; l++) {
                float *z = spectrum + 2 * (k * HALF + l);
                size_t a = (k + PADDED / 2) % PADDED, b = (l + PADDED / 2) % PADDED;
                size_t a2 = (PADDED + PADDED / 2 - k) % PADDED;
                size_t b2 = (PADDED + PADDED / 2 - l) % PADDED;
                float even = 0.5f * (y[a * PADDED + b] + y[a2 * PADDED + b2]);
                float size = sqrtf(z[0] * z[0] + z[1] * z[1]);
                float factor = size > 0 ? (size - even) / size : 0;
                z[0] *= factor;
                z[1] *= factor;
            }
        dsg_fft_inverse_f32(plan, plane, spectrum);
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < N; j++)
                g[i * N + j] = 0.5f * norm * plane[i * PADDED + j];
    }
}

static void
time_phase(void)
{
    const dsg_shape shape = {.c = C, .h = N, .w = N};
    dsg_op_f32 *op;
    check(dsg_phase_create_f32(&op, shape, PAD, 0.5, 0.5));
    float *x = uniform(PIXELS), *w = uniform(PIXELS), *y = uniform(MEASURED);
    float *g = get(PIXELS, sizeof *g), *t = get(MEASURED, sizeof *t);
    void *ws = get(dsg_op_workspace_f32(op), 1);
    /* one way: half the columns of the image, half the rows of the plane */
    double way = C * 5.0 * PADDED * log2(PADDED) * (N / 2 + HALF);
    TIME(dsg_op_forward_f32(op, t, x, ws));
    report("phase forward f32", way, 0);
    TIME(dsg_op_residual_gradient_f32(op, g, x, y, ws));
    report("phase residual gradient f32", 2 * way, 0);
    TIME(dsg_op_jvp_f32(op, t, x, w, ws));
    report("phase jvp f32", 2 * way, 0);
    TIME(dsg_op_curvature_f32(op, g, x, y, w, ws));
    report("phase curvature f32", 3 * way, 0);

    const dsg_fft_f32 *plan;
    check(dsg_fft_get_f32(&plan, PADDED, PADDED));
    float *plane = get(PADDED * PADDED, sizeof *plane);
    float *spectrum = get(PADDED * HALF, 2 * sizeof *spectrum);
    TIME(naive_phase_gradient(plan, g, x, y, plane, spectrum));
    report("  naive", 0, 0);

    dsg_op_f64 *op64;
    check(dsg_phase_create_f64(&op64, shape, PAD, 0.5, 0.5));
    double *x64 = get(PIXELS, sizeof *x64), *g64 = get(PIXELS, sizeof *g64);
    double *y64 = get(MEASURED, sizeof *y64);
    void *ws64 = get(dsg_op_workspace_f64(op64), 1);
    for (size_t i = 0; i < PIXELS; i++)
        x64[i] = x[i];
    for (size_t i = 0; i < MEASURED; i++)
        y64[i] = y[i];
    TIME(dsg_op_residual_gradient_f64(op64, g64, x64, y64, ws64));
    report("phase residual gradient f64", 2 * way, 0);

    dsg_free(ws64);
    dsg_free(y64);
    dsg_free(g64);
    dsg_free(x64);
    dsg_op_destroy_f64(op64);
    dsg_free(spectrum);
    dsg_free(plane);
    dsg_free(ws);
    dsg_free(t);
    dsg_free(g);
    dsg_free(y);
    dsg_free(w);
    dsg_free(x);
    dsg_op_destroy_f32(op);
}

/* ---- clip and mask: 3 arrays each ---- */

static double
naive_clip_gradient(float *g, const float *x, const float *y, size_t n, float a)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        float t = a * x[i], r = fminf(fmaxf(t, -1.0f), 1.0f) - y[i];
        sum += (double)r * r;
        g[i] = fabsf(t) <= 1.0f ? a * r : 0.0f;
    }
    return sum;
}

static double
naive_mask_gradient(float *g, const float *x, const float *y, const unsigned char *mask,
                    size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        unsigned char m = mask[i % (N * N)];
        float r = (m ? x[i] : 0.0f) - y[i];
        sum += (double)r * r;
        g[i] = m ? r : 0.0f;
    }
    return sum;
}

static void
time_streams(void)
{
    const dsg_shape shape = {.c = C, .h = N, .w = N};
    const double arrays = 3.0 * PIXELS * sizeof(float), bytes = arrays + C * N * N;
    float *x = uniform(PIXELS), *y = uniform(PIXELS), *g = get(PIXELS, sizeof *g);
    unsigned char *mask = get(N * N, 1);
    char *from = get(2 * (size_t)bytes, 1), *to = get(2 * (size_t)bytes, 1);
    memset(from, 1, (size_t)bytes);
    memset(to, 1, (size_t)bytes);
    for (size_t i = 0; i < N * N; i++)
        mask[i] = rand() < RAND_MAX / 3;
    volatile double keep = 0.0;

    dsg_op_f32 *op;
    check(dsg_pointwise_create_f32(&op, shape, DSG_POINTWISE_CLIP, 2));
    TIME(dsg_op_residual_gradient_f32(op, g, x, y, NULL));
    report("clip residual gradient f32", 0, arrays);
    dsg_op_destroy_f32(op);
    TIME(keep = naive_clip_gradient(g, x, y, PIXELS, 2));
    report("  naive", 0, arrays);
    /* memcpy(n) reads n and writes n */
    TIME(memcpy(to, from, (size_t)arrays / 2));
    report("  memcpy", 0, arrays);

    check(dsg_mask_create_f32(&op, shape, mask, 1));
    TIME(dsg_op_residual_gradient_f32(op, g, x, y, NULL));
    report("mask residual gradient f32", 0, bytes);
    dsg_op_destroy_f32(op);
    TIME(keep = naive_mask_gradient(g, x, y, mask, PIXELS));
    report("  naive", 0, bytes);
    TIME(memcpy(to, from, (size_t)bytes / 2));
    report("  memcpy", 0, bytes);
    (void)keep;

    check(dsg_pointwise_create_f32(&op, shape, DSG_POINTWISE_ENCODE, 2.2));
    TIME(dsg_op_residual_gradient_f32(op, g, x, y, NULL));
    report("encode residual gradient f32", 0, arrays);
    dsg_op_destroy_f32(op);

    dsg_free(to);
    dsg_free(from);
    dsg_free(mask);
    dsg_free(g);
    dsg_free(y);
    dsg_free(x);
}

/* ---- warp and matrix ---- */

static void
time_warp(void)
{
    const dsg_shape shape = {.c = C, .h = N, .w = N};
    float *x = uniform(PIXELS), *y = uniform(PIXELS), *d = uniform(2 * N * N);
    dsg_op_f32 *op;
    check(dsg_warp_create_f32(&op, shape, d));
    void *ws = get(dsg_op_workspace_f32(op), 1);
    TIME(dsg_op_forward_f32(op, y, x, ws));
    report("warp forward f32", 0, 0);
    TIME(dsg_op_vjp_f32(op, y, NULL, x, ws));
    report("warp adjoint f32", 0, 0);
    dsg_free(ws);
    dsg_op_destroy_f32(op);
    dsg_free(d);
    dsg_free(y);
    dsg_free(x);
}

static void
naive_multiply(float *y, const float *a, const float *x, size_t m, size_t n)
{
    for (size_t i = 0; i < m; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < n; j++)
            sum += (double)a[i * n + j] * x[j];
        y[i] = (float)sum;
    }
}

static void
time_matrix(void)
{
    enum { ROWS = 1000, COLUMNS = 3072 };
    const dsg_shape in = {.c = 3, .h = 32, .w = 32}, out = {.c = 1, .h = 1, .w = ROWS};
    const double bytes = (double)ROWS * COLUMNS * sizeof(float);
    float *entries = uniform(ROWS * COLUMNS);
    double *matrix = get(ROWS * COLUMNS, sizeof *matrix);
    for (size_t i = 0; i < ROWS * COLUMNS; i++)
        matrix[i] = entries[i];
    float *x = uniform(COLUMNS), *y = uniform(ROWS);
    dsg_op_f32 *op;
    check(dsg_matrix_create_f32(&op, in, out, matrix));
    TIME(dsg_op_forward_f32(op, y, x, NULL));
    report("matrix 1000 x 3072 forward f32", 0, bytes);
    TIME(naive_multiply(y, entries, x, ROWS, COLUMNS));
    report("  naive", 0, bytes);
    TIME(dsg_op_vjp_f32(op, x, NULL, y, NULL));
    report("matrix 1000 x 3072 adjoint f32", 0, bytes);
    dsg_op_destroy_f32(op);
    dsg_free(y);
    dsg_free(x);
    dsg_free(matrix);
    dsg_free(entries);
}

int
main(void)
{
    time_phase();
    time_streams();
    time_warp();
    time_matrix();
    return 0;
}
