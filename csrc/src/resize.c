#include "dsg/resize.h"

#include <math.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/separable.h"
#include "shape.h"

/* Keys' cubic with a = -0.5. */
static double
cubic(double x)
{
    x = fabs(x);
    if (x <= 1.0)
        return (1.5 * x - 2.5) * x * x + 1.0;
    if (x <= 2.0)
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    return 0.0;
}

/* i of the endlessly mirrored axis  .. b a | a b .. z | z y ..  as an index below n. */
static size_t
mirror(ptrdiff_t i, size_t n)
{
    ptrdiff_t period = 2 * (ptrdiff_t)n, q = i % period;
    q = q < 0 ? q + period : q;
    return (size_t)(q < (ptrdiff_t)n ? q : period - 1 - q);
}

/* How one axis is resized: output o is sum_t weight[t] x[mirror(first + factor o + t)].
 * The factor is an integer, so all outputs share the weights. */
typedef struct axis {
    size_t n, out; /* lengths before and after */
    size_t taps;
    ptrdiff_t first;
} axis;

/* Time and memory grow with the factor, not with the image: one this many times longer
 * than the longer axis gives nothing but a mean. */
enum { MOST_STRETCH = 16 };

/* Upper bound of an axis' taps: the cubic reaches 2 factor to either side. */
static size_t
taps_bound(size_t factor)
{
    return 4 * factor + 3;
}

/* Fills the weights (taps_bound of them) in double and returns the axis. */
static axis
make_axis(double *weight, size_t n, size_t factor)
{
    double f = (double)factor;
    axis a = {.n = n, .out = (n - 1) / factor + 1};
    /* 0-based position of output 0 */
    double position = f + (1.0 - f) / 2.0 + ((double)n - f * (double)a.out) / 2.0 - 1.0;
    ptrdiff_t from = (ptrdiff_t)floor(position - 2.0 * f);
    size_t bound = taps_bound(factor), begin = bound, end = 0;
    double sum = 0.0;
    for (size_t t = 0; t < bound; t++) {
        weight[t] = cubic((position - (double)(from + (ptrdiff_t)t)) / f) / f;
        sum += weight[t];
        if (weight[t] != 0.0) {
            begin = begin < t ? begin : t;
            end = t + 1;
        }
    }
    a.first = from + (ptrdiff_t)begin;
    a.taps = end - begin;
    for (size_t t = 0; t < a.taps; t++)
        weight[t] = weight[begin + t] / sum;
    return a;
}

/* The axis as a matrix (out, n); NULL when out of memory. */
static double *
axis_matrix(size_t n, size_t factor, size_t out)
{
    size_t size;
    if (!dsg_mul(out, n, &size))
        return NULL;
    double *matrix = dsg_calloc(size, sizeof *matrix);
    double *weight = dsg_alloc(taps_bound(factor), sizeof *weight);
    if (matrix && weight) {
        axis a = make_axis(weight, n, factor);
        for (size_t o = 0; o < out; o++)
            for (size_t t = 0; t < a.taps; t++)
                matrix[o * n + mirror(a.first + (ptrdiff_t)(factor * o + t), n)] +=
                    weight[t];
    } else {
        dsg_free(matrix);
        matrix = NULL;
    }
    dsg_free(weight);
    return matrix;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "resize.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "resize.inc.h"
#undef DSG_PRECISION
