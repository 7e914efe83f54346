/* Data steps of one image, 3 channels, one thread: prox in closed form and by conjugate
 * gradients, and what a set-up costs.
 *
 *     make -C csrc build/release/bench_data_step && csrc/build/release/bench_data_step
 *
 * Minimum and median of 25 runs, of 3 for the naive loops (the four dense products of
 * the closed form).  rho = 0.01; the blur is Gaussian, std 3, 25 taps, its factors
 * (256, 256); conjugate gradients stop at 1e-5. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "dsg/blur.h"
#include "dsg/data_step.h"
#include "dsg/mask.h"
#include "dsg/mem.h"
#include "dsg/resize.h"
#include "dsg/separable.h"

enum { CHANNELS = 3, SIDE = 256, RADIUS = 12, RUNS = 25 };

static const dsg_shape shape = {.c = CHANNELS, .h = SIDE, .w = SIDE};
static const dsg_cg_options options = {.tolerance = 1e-5, .iterations = 1000};

static float *
random_image(size_t n)
{
    float *x = get(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)rand() / (float)RAND_MAX;
    return x;
}

static void
report(const char *name, double *seconds, int runs)
{
    qsort(seconds, (size_t)runs, sizeof *seconds, ascending);
    printf("%-34s min %9.4f ms  median %9.4f ms", name, seconds[0] * 1e3,
           seconds[runs / 2] * 1e3);
}

/* Times set-up (if the step is not given) and prox. */
static void
time_step(const char *name, const dsg_op_f32 *op, dsg_data_step_f32 *step, int runs)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    float *x = random_image(n), *v = random_image(n), *y = random_image(m);
    double seconds[RUNS];
    dsg_cg_info info = {0};
    char label[64];
    if (!step) {
        for (int i = 0; i < RUNS; i++) {
            dsg_data_step_destroy_f32(step);
            double start = now();
            check(dsg_data_step_create_f32(&step, op));
            seconds[i] = now() - start;
        }
        snprintf(label, sizeof label, "%s set-up", name);
        report(label, seconds, RUNS);
        printf("\n");
    }
    check(dsg_data_step_prox_batch_f32(step, x, v, y, 0.01, &options, &info, 1));
    for (int i = 0; i < runs; i++) {
        double start = now();
        check(dsg_data_step_prox_batch_f32(step, x, v, y, 0.01, &options, &info, 1));
        seconds[i] = now() - start;
    }
    snprintf(label, sizeof label, "%s prox", name);
    report(label, seconds, runs);
    if (info.iterations)
        printf("  %zu iterations, residual %.1e", info.iterations, info.residual);
    printf("\n");
    dsg_data_step_destroy_f32(step);
    dsg_free(x);
    dsg_free(v);
    dsg_free(y);
}

/* The same operator with its closed form hidden. */
static void
time_iterated(const char *name, dsg_op_f32 *op)
{
    const dsg_op_class_f32 *own = op->class;
    dsg_op_class_f32 open = *own;
    dsg_data_step_f32 *step;
    double norm, start;
    open.data_step = NULL;
    op->class = &open;
    check(dsg_data_step_create_f32(&step, op));
    start = now();
    check(dsg_data_step_norm_f32(step, &norm));
    printf("%-34s once %8.4f ms  %.7f\n", "norm by Lanczos", (now() - start) * 1e3,
           norm);
    time_step(name, op, step, 3);
    op->class = own;
}

/* c += a b, the inner loop along the rows. */
static void
naive_product(float *c, const float *a, const float *b, size_t m, size_t n, size_t k)
{
    for (size_t i = 0; i < m; i++)
        for (size_t l = 0; l < k; l++)
            for (size_t j = 0; j < n; j++)
                c[i * n + j] += a[i * k + l] * b[l * n + j];
}

static void
time_naive(const char *name, size_t p)
{
    float *a = random_image(SIDE * SIDE), *b = random_image(SIDE * SIDE);
    float *c = random_image(SIDE * SIDE);
    double seconds[3];
    for (int i = 0; i < 3; i++) {
        double start = now();
        for (size_t t = 0; t < CHANNELS; t++) {
            naive_product(c, a, b, p, p, p);
            naive_product(c, a, b, p, p, p);
            naive_product(c, a, b, p, SIDE, p);
            naive_product(c, a, b, SIDE, SIDE, p);
        }
        seconds[i] = now() - start;
    }
    report(name, seconds, 3);
    printf("\n");
    dsg_free(a);
    dsg_free(b);
    dsg_free(c);
}

static void
gaussian_taps(double *w)
{
    double sum = 0.0;
    for (int i = -RADIUS; i <= RADIUS; i++)
        sum += w[i + RADIUS] = exp(-i * i / 18.0);
    for (int i = 0; i <= 2 * RADIUS; i++)
        w[i] /= sum;
}

int
main(void)
{
    dsg_op_f32 *op;
    unsigned char *mask = get(SIDE * SIDE, 1);
    for (size_t i = 0; i < SIDE * SIDE; i++)
        mask[i] = rand() % 10 < 3;
    check(dsg_mask_create_f32(&op, shape, mask, 1));
    time_step("mask", op, NULL, RUNS);
    dsg_op_destroy_f32(op);
    dsg_free(mask);

    check(dsg_resize_create_f32(&op, shape, 4));
    time_step("resize x4", op, NULL, RUNS);
    time_naive("resize x4 products, naive", SIDE / 4);
    time_iterated("resize x4 by CG", op);
    dsg_op_destroy_f32(op);

    enum { TAPS = 2 * RADIUS + 1 };
    double w[TAPS], kernel[TAPS * TAPS];
    double *matrix = get(SIDE * SIDE, sizeof *matrix);
    gaussian_taps(w);
    for (size_t i = 0; i < TAPS * TAPS; i++)
        kernel[i] = w[i / TAPS] * w[i % TAPS];
    for (size_t i = 0; i < SIDE * SIDE; i++)
        matrix[i] = 0.0;
    for (long i = 0; i < SIDE; i++)
        for (long t = -RADIUS; t <= RADIUS; t++) {
            long j = labs(i + t);
            matrix[i * SIDE + (j < SIDE ? j : 2 * (SIDE - 1) - j)] += w[t + RADIUS];
        }
    dsg_blur_geometry geometry = {.kh = TAPS,
                                  .kw = TAPS,
                                  .centre_row = RADIUS,
                                  .centre_column = RADIUS,
                                  .border = DSG_BORDER_REFLECT};
    check(dsg_blur_create_f32(&op, shape, kernel, &geometry, DSG_BLUR_SEPARABLE));
    double seconds[RUNS];
    dsg_data_step_f32 *step = NULL;
    for (int i = 0; i < RUNS; i++) {
        dsg_data_step_destroy_f32(step);
        double start = now();
        check(dsg_separable_create_f32(&step, op, CHANNELS, SIDE, SIDE, SIDE, SIDE,
                                       matrix, matrix));
        seconds[i] = now() - start;
    }
    report("separable blur set-up", seconds, RUNS);
    printf("\n");
    time_step("separable blur", op, step, RUNS);
    time_naive("separable blur products, naive", SIDE);
    time_iterated("separable blur by CG", op);
    dsg_op_destroy_f32(op);
    dsg_free(matrix);
    return 0;
}
