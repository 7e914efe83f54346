#include "dsg/phase.h"

#include <complex.h>

#include "op_checks.h"

static const double turn = 6.283185307179586;

/* out (H, W) = fftshift(F pad(u)) of u (h, w) by the definition, rows and columns
 * apart. */
static void
ref_transform(double complex *out, const double *u, size_t h, size_t w, size_t pad)
{
    size_t height = h + 2 * pad, width = w + 2 * pad;
    double complex *wide = malloc(h * width * sizeof *wide);
    for (size_t i = 0; i < h; i++)
        for (size_t l = 0; l < width; l++) {
            double complex sum = 0;
            for (size_t j = 0; j < w; j++)
                sum += u[i * w + j] * cexp(-I * turn * (double)(l * (j + pad) % width) /
                                           (double)width);
            wide[i * width + l] = sum;
        }
    double norm = 1 / sqrt((double)height * (double)width);
    for (size_t k = 0; k < height; k++)
        for (size_t l = 0; l < width; l++) {
            double complex sum = 0;
            for (size_t i = 0; i < h; i++)
                sum +=
                    wide[i * width + l] *
                    cexp(-I * turn * (double)(k * (i + pad) % height) / (double)height);
            size_t row = (k + height / 2) % height, column = (l + width / 2) % width;
            out[row * width + column] = norm * sum;
        }
    free(wide);
}

/* g (h, w) = scale Re crop(F^H q), all of the plane being summed. */
static void
ref_transform_back(double *g, const double complex *q, size_t h, size_t w, size_t pad,
                   double scale)
{
    size_t height = h + 2 * pad, width = w + 2 * pad;
    double complex *wide = malloc(height * w * sizeof *wide);
    for (size_t k = 0; k < height; k++)
        for (size_t j = 0; j < w; j++) {
            double complex sum = 0;
            for (size_t l = 0; l < width; l++)
                sum += q[k * width + (l + width / 2) % width] *
                       cexp(I * turn * (double)(l * (j + pad) % width) / (double)width);
            wide[k * w + j] = sum;
        }
    double norm = scale / sqrt((double)height * (double)width);
    for (size_t i = 0; i < h; i++)
        for (size_t j = 0; j < w; j++) {
            double complex sum = 0;
            for (size_t k = 0; k < height; k++)
                sum +=
                    wide[(k + height / 2) % height * w + j] *
                    cexp(I * turn * (double)(k * (i + pad) % height) / (double)height);
            g[i * w + j] = norm * creal(sum);
        }
    free(wide);
}

/* Rounding of an entry of a transform: it grows with log2 of the size, relative to the
 * root mean square of what is transformed, here at most `largest`. */
static double
transform_error(size_t pixels, double epsilon, double largest)
{
    return 8 * epsilon * (log2((double)pixels) + 2) * largest;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_phase.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_phase.inc.h"
#undef DSG_PRECISION

static void
test_float_does_what_double_does(void)
{
    dsg_shape shape = {.c = 2, .h = 12, .w = 9};
    dsg_op_f32 *op32 = NULL;
    dsg_op_f64 *op64 = NULL;
    uint64_t seed = 3;
    CHECK(dsg_phase_create_f32(&op32, shape, 3, 0.5, 0.5) == DSG_OK);
    CHECK(dsg_phase_create_f64(&op64, shape, 3, 0.5, 0.5) == DSG_OK);
    float *x = random_array_f32(216, &seed);
    /* no magnitude is below 1 / 40 here, and curvature divides by its square */
    double error = transform_error(270, FLT_EPSILON, 1.0);
    check_precisions(op32, op64, x, 100 * error, seed);
    free(x);
    dsg_op_destroy_f32(op32);
    dsg_op_destroy_f64(op64);
}

int
main(void)
{
    test_phase_all_f32();
    test_phase_all_f64();
    test_float_does_what_double_does();
    return REPORT();
}
