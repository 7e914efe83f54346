/* Operators: residual gradient g = A^T (A x - y) of one image, 3 channels, one thread.
 *
 *     make -C csrc build/release/bench_ops && csrc/build/release/bench_ops
 *
 * Minimum and median of 25 runs, of 3 for the naive loops (padding by index, every tap
 * of the kernel's support).  GFLOP/s count what the form itself computes: 2 flops a tap
 * and pixel, both ways; FFTs 2.5 n log2 n each, four a channel.
 *
 * The second table times the gradient with respect to the kernel, sums counted as 2
 * flops whichever way they are computed, and the exact data step of a circular blur.
 *
 * The third is where SPARSE_NS and FFT_NS of blur.c come from. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "dsg/blur.h"
#include "dsg/data_step.h"
#include "dsg/fft.h"
#include "dsg/mask.h"
#include "dsg/mem.h"
#include "dsg/resize.h"

enum { CHANNELS = 3, KERNEL = 61, RUNS = 25 };

static double
uniform(void)
{
    return (double)rand() / RAND_MAX;
}

static void
gaussian(double *kernel, double std, int radius)
{
    double sum = 0.0, w[KERNEL] = {0};
    for (int i = -radius; i <= radius; i++)
        sum += w[KERNEL / 2 + i] = exp(-0.5 * i * i / (std * std));
    for (size_t i = 0; i < KERNEL * KERNEL; i++)
        kernel[i] = w[i / KERNEL] * w[i % KERNEL] / (sum * sum);
}

/* The given number of taps, anywhere in the whole support. */
static void
scattered(double *kernel, size_t taps)
{
    for (size_t i = 0; i < KERNEL * KERNEL; i++)
        kernel[i] = 0.0;
    kernel[0] = kernel[KERNEL * KERNEL - 1] = 1.0;
    for (size_t n = 2; n < taps;) {
        size_t i = (size_t)(uniform() * (KERNEL * KERNEL - 1));
        n += kernel[i] == 0.0;
        kernel[i] = 1.0 + uniform();
    }
    for (size_t i = 0; i < KERNEL * KERNEL; i++)
        kernel[i] /= 1.5 * (double)taps;
}

static long
reflect(long i, long n)
{
    i = labs(i);
    return i < n ? i : 2 * (n - 1) - i;
}

static void
naive_blur_gradient(float *g, const float *x, const float *y, const double *kernel,
                    long radius, long n)
{
    for (long i = 0; i < CHANNELS * n * n; i++)
        g[i] = 0.0f;
    for (long c = 0; c < CHANNELS; c++)
        for (long i = 0; i < n; i++)
            for (long j = 0; j < n; j++) {
                const float *plane = x + c * n * n;
                float r = -y[(c * n + i) * n + j];
                for (long a = -radius; a <= radius; a++)
                    for (long b = -radius; b <= radius; b++)
                        r += (float)kernel[(a + KERNEL / 2) * KERNEL + b + KERNEL / 2] *
                             plane[reflect(i + a, n) * n + reflect(j + b, n)];
                for (long a = -radius; a <= radius; a++)
                    for (long b = -radius; b <= radius; b++)
                        g[c * n * n + reflect(i + a, n) * n + reflect(j + b, n)] +=
                            (float)kernel[(a + KERNEL / 2) * KERNEL + b + KERNEL / 2] *
                            r;
            }
}

static void
report(const char *name, size_t n, double *seconds, int runs, double flops,
       double bytes)
{
    qsort(seconds, (size_t)runs, sizeof *seconds, ascending);
    double best = seconds[0], median = seconds[runs / 2];
    printf("%-28s %4zu^2  min %9.4f ms  median %9.4f ms  %6.1f GFLOP/s  %5.1f GB/s\n",
           name, n, best * 1e3, median * 1e3, flops / best * 1e-9, bytes / best * 1e-9);
}

static double
time_f32(const char *name, const dsg_op_f32 *op, size_t n, double flops)
{
    size_t in = dsg_shape_size(op->in), out = dsg_shape_size(op->out);
    float *x = get(in, sizeof *x), *g = get(in, sizeof *g), *y = get(out, sizeof *y);
    void *ws = get(dsg_op_workspace_f32(op), 1);
    double seconds[RUNS];
    for (size_t i = 0; i < in; i++)
        x[i] = (float)uniform();
    for (size_t i = 0; i < out; i++)
        y[i] = (float)uniform();
    dsg_op_residual_gradient_f32(op, g, x, y, ws);
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        dsg_op_residual_gradient_f32(op, g, x, y, ws);
        seconds[i] = now() - start;
    }
    if (name)
        report(name, n, seconds, RUNS, flops, (double)(2 * in + out) * sizeof *x);
    else
        qsort(seconds, RUNS, sizeof *seconds, ascending);
    dsg_free(ws);
    dsg_free(y);
    dsg_free(g);
    dsg_free(x);
    return seconds[0];
}

static void
time_f64(const char *name, const dsg_op_f64 *op, size_t n, double flops)
{
    size_t in = dsg_shape_size(op->in), out = dsg_shape_size(op->out);
    double *x = get(in, sizeof *x), *g = get(in, sizeof *g), *y = get(out, sizeof *y);
    void *ws = get(dsg_op_workspace_f64(op), 1);
    double seconds[RUNS];
    for (size_t i = 0; i < in; i++)
        x[i] = uniform();
    for (size_t i = 0; i < out; i++)
        y[i] = uniform();
    dsg_op_residual_gradient_f64(op, g, x, y, ws);
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        dsg_op_residual_gradient_f64(op, g, x, y, ws);
        seconds[i] = now() - start;
    }
    report(name, n, seconds, RUNS, flops, (double)(2 * in + out) * sizeof *x);
    dsg_free(ws);
    dsg_free(y);
    dsg_free(g);
    dsg_free(x);
}

static dsg_blur_geometry
centred(size_t size, dsg_border border)
{
    return (dsg_blur_geometry){.kh = size,
                               .kw = size,
                               .centre_row = size / 2,
                               .centre_column = size / 2,
                               .border = border};
}

static double
time_border(const char *name, const double *kernel, size_t n, dsg_blur_form form,
            double taps, dsg_border border)
{
    dsg_op_f32 *op;
    dsg_shape shape = {.c = CHANNELS, .h = n, .w = n};
    dsg_blur_geometry g = centred(KERNEL, border);
    if (dsg_blur_create_f32(&op, shape, kernel, &g, form) != DSG_OK)
        exit(1);
    double best = time_f32(name, op, n, 4.0 * taps * CHANNELS * (double)(n * n));
    dsg_op_destroy_f32(op);
    return best;
}

static double
time_blur(const char *name, const double *kernel, size_t n, dsg_blur_form form,
          double taps)
{
    return time_border(name, kernel, n, form, taps, DSG_BORDER_REFLECT);
}

static void
time_blur_f64(const char *name, const double *kernel, size_t n, dsg_blur_form form,
              double taps)
{
    dsg_op_f64 *op;
    dsg_shape shape = {.c = CHANNELS, .h = n, .w = n};
    dsg_blur_geometry g = centred(KERNEL, DSG_BORDER_REFLECT);
    if (dsg_blur_create_f64(&op, shape, kernel, &g, form) != DSG_OK)
        exit(1);
    time_f64(name, op, n, 4.0 * taps * CHANNELS * (double)(n * n));
    dsg_op_destroy_f64(op);
}

static void
time_naive(const double *kernel, size_t n)
{
    float *x = get(CHANNELS * n * n, sizeof *x), *g = get(CHANNELS * n * n, sizeof *g);
    double seconds[3];
    for (size_t i = 0; i < CHANNELS * n * n; i++)
        x[i] = (float)uniform();
    for (int i = 0; i < 3; i++) {
        double start = now();
        naive_blur_gradient(g, x, x, kernel, 12, (long)n);
        seconds[i] = now() - start;
    }
    report("gaussian 25x25 naive f32", n, seconds, 3,
           4.0 * 625 * CHANNELS * (double)(n * n), 0.0);
    dsg_free(g);
    dsg_free(x);
}

static void
naive_kernel_gradient(float *gradient, const float *x, const float *v, size_t n,
                      const dsg_blur_geometry *g)
{
    for (size_t a = 0; a < g->kh; a++)
        for (size_t b = 0; b < g->kw; b++) {
            double sum = 0.0;
            for (size_t c = 0; c < CHANNELS; c++)
                for (size_t i = 0; i < n; i++)
                    for (size_t j = 0; j < n; j++) {
                        long p = reflect((long)(i + a - g->centre_row), (long)n);
                        long q = reflect((long)(j + b - g->centre_column), (long)n);
                        sum += v[(c * n + i) * n + j] *
                               x[(c * n + (size_t)p) * n + (size_t)q];
                    }
            gradient[a * g->kw + b] = (float)sum;
        }
}

static void
time_kernel_gradient(const char *name, size_t n, size_t side, bool naive)
{
    dsg_shape shape = {.c = CHANNELS, .h = n, .w = n};
    dsg_blur_geometry g = centred(side, DSG_BORDER_REFLECT);
    size_t size = dsg_shape_size(shape);
    float *x = get(size, sizeof *x), *v = get(size, sizeof *v);
    float *gradient = get(side * side, sizeof *gradient);
    double seconds[RUNS];
    int runs = naive ? 3 : RUNS;
    for (size_t i = 0; i < size; i++) {
        x[i] = (float)uniform();
        v[i] = (float)uniform();
    }
    for (int i = -1; i < runs; i++) { /* the first makes the plan */
        double start = now();
        if (naive)
            naive_kernel_gradient(gradient, x, v, n, &g);
        else if (dsg_blur_kernel_gradient_f32(gradient, x, v, shape, &g) != DSG_OK)
            exit(1);
        if (i >= 0)
            seconds[i] = now() - start;
    }
    report(name, n, seconds, runs, 2.0 * (double)(side * side * size),
           (double)(2 * size + side * side) * sizeof *x);
    dsg_free(gradient);
    dsg_free(v);
    dsg_free(x);
}

static void
time_circular_prox(const double *kernel, size_t n)
{
    dsg_op_f32 *op;
    dsg_data_step_f32 *step;
    dsg_shape shape = {.c = CHANNELS, .h = n, .w = n};
    dsg_blur_geometry g = centred(KERNEL, DSG_BORDER_CIRCULAR);
    if (dsg_blur_create_f32(&op, shape, kernel, &g, DSG_BLUR_AUTO) != DSG_OK)
        exit(1);
    if (op->class->data_step(op, &step) != DSG_OK || !step)
        exit(1);
    size_t size = dsg_shape_size(shape);
    float *x = get(size, sizeof *x), *v = get(size, sizeof *v);
    float *y = get(size, sizeof *y);
    void *ws = get(step->workspace, 1);
    double seconds[RUNS];
    for (size_t i = 0; i < size; i++) {
        v[i] = (float)uniform();
        y[i] = (float)uniform();
    }
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        step->class->prox(step, x, v, y, 0.1, ws);
        seconds[i] = now() - start;
    }
    double area = (double)(n * n);
    report("circular prox f32", n, seconds, RUNS,
           CHANNELS * 3 * 2.5 * area * log2(area), 3.0 * (double)size * sizeof *x);
    dsg_free(ws);
    dsg_free(y);
    dsg_free(v);
    dsg_free(x);
    step->class->destroy(step);
    dsg_op_destroy_f32(op);
}

static void
time_resize(size_t n)
{
    dsg_op_f32 *op;
    dsg_shape shape = {.c = CHANNELS, .h = n, .w = n};
    if (dsg_resize_create_f32(&op, shape, 4) != DSG_OK)
        exit(1);
    /* 16 taps an output: n^2 / 4 going down, n^2 / 16 across */
    time_f32("bicubic x4 f32", op, n, 4.0 * 16 * CHANNELS * (double)(n * n) * 5 / 16);
    dsg_op_destroy_f32(op);
}

static void
time_mask(size_t n)
{
    dsg_op_f32 *op;
    dsg_shape shape = {.c = CHANNELS, .h = n, .w = n};
    unsigned char *mask = get(n * n, 1);
    for (size_t i = 0; i < n * n; i++)
        mask[i] = uniform() < 0.3;
    if (dsg_mask_create_f32(&op, shape, mask, 1) != DSG_OK)
        exit(1);
    time_f32("mask f32", op, n, 3.0 * CHANNELS * (double)(n * n));
    dsg_op_destroy_f32(op);
    dsg_free(mask);
}

int
main(void)
{
    static const size_t sizes[] = {64, 256, 512}, counts[] = {40, 160, 640};
    double smooth[KERNEL * KERNEL], rough[KERNEL * KERNEL];
    gaussian(smooth, 3.0, 12);
    for (size_t i = 0; i < 3; i++) {
        size_t n = sizes[i];
        double grid = 8.0 * (double)dsg_fft_fast_size((n + KERNEL + 6) / 8);
        double fft_taps = 2.5 * grid * grid * log2(grid * grid) / (double)(n * n);
        scattered(rough, 160);
        time_blur("gaussian 61x61 separable f32", smooth, n, DSG_BLUR_SEPARABLE, 50);
        time_blur_f64("gaussian 61x61 separable f64", smooth, n, DSG_BLUR_SEPARABLE,
                      50);
        if (n < 512)
            time_naive(smooth, n);
        time_border("gaussian circular f32", smooth, n, DSG_BLUR_SEPARABLE, 50,
                    DSG_BORDER_CIRCULAR);
        time_border("gaussian zero f32", smooth, n, DSG_BLUR_SEPARABLE, 50,
                    DSG_BORDER_ZERO);
        time_border("gaussian replicate f32", smooth, n, DSG_BLUR_SEPARABLE, 50,
                    DSG_BORDER_REPLICATE);
        time_blur("160 taps 61x61 sparse f32", rough, n, DSG_BLUR_SPARSE, 160);
        time_blur("160 taps 61x61 fft f32", rough, n, DSG_BLUR_FFT, fft_taps);
        time_blur("160 taps 61x61 auto f32", rough, n, DSG_BLUR_AUTO, 160);
        time_resize(n);
        time_mask(n);
    }

    printf("\n");
    time_kernel_gradient("kernel 9x9 f32", 256, 9, false);
    time_kernel_gradient("kernel 9x9 naive f32", 256, 9, true);
    time_kernel_gradient("kernel 16x16 f32", 64, 16, false);
    time_kernel_gradient("kernel 16x16 naive f32", 64, 16, true);
    time_kernel_gradient("kernel 64x64 f32", 256, 64, false);
    for (size_t i = 0; i < 3; i++)
        time_circular_prox(smooth, sizes[i]);

    printf("\ncost model of the blur, ns, one channel (blur.c: SPARSE_NS, FFT_NS)\n");
    for (size_t i = 0; i < 3; i++) {
        size_t n = sizes[i], side = n + KERNEL - 1;
        double pixels = (double)(n * n + side * side);
        double grid = 8.0 * (double)dsg_fft_fast_size((side + 7) / 8);
        printf("%4zu^2  per tap and pixel", n);
        for (size_t k = 0; k < 3; k++) {
            scattered(rough, counts[k]);
            double best = time_blur(NULL, rough, n, DSG_BLUR_SPARSE, 0);
            printf("  %zu taps %.4f", counts[k],
                   best * 1e9 / (CHANNELS * (double)counts[k] * pixels));
        }
        double best = time_blur(NULL, rough, n, DSG_BLUR_FFT, 0);
        printf("   fft, per grid point and log2: %.4f\n",
               best * 1e9 / (CHANNELS * grid * grid * log2(grid * grid)));
    }
    return 0;
}
