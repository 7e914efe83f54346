#include "dsg/metric.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/threads.h"
#include "shape.h"

/* ---- SSIM ---------------------------------------------------------------------- *
 *
 * The window is separable.  Of every pixel four moments are filtered: x, y, x^2 + y^2
 * and x y (the two variances only occur as their sum), all in double: in float the
 * differences E[x^2] - E[x]^2 lose the sixth digit of the result.
 *
 * An image is worked through in strips of STRIP output columns.  Of each input row the
 * moments are filtered along the row into a window of WINDOW rows; as soon as it holds
 * `taps` rows an output row follows by the same filter down the columns.  The window
 * moves on by copying its last rows to the front when it is full. */

enum { MOMENTS = 4, STRIP = 64, WINDOW = 48, MOST_TAPS = 11, INPUT = STRIP + 16 };

typedef struct ssim_window {
    size_t taps;
    double weight[MOST_TAPS]; /* of one axis, sum 1 */
    double unbias;            /* factor on variances and covariance */
} ssim_window;

typedef struct ssim_scratch {
    double input[MOMENTS][INPUT];
    double window[WINDOW][MOMENTS][STRIP];
    double output[MOMENTS][STRIP];
} ssim_scratch;

static void
make_window(ssim_window *win, dsg_ssim_window kind)
{
    if (kind == DSG_SSIM_UNIFORM) {
        *win = (ssim_window){.taps = 7, .unbias = 49.0 / 48.0};
        for (size_t i = 0; i < 7; i++)
            win->weight[i] = 1.0 / 7.0;
        return;
    }
    *win = (ssim_window){.taps = 11, .unbias = 1.0};
    double sum = 0.0;
    for (size_t i = 0; i < 11; i++) {
        double t = (double)i - 5.0;
        win->weight[i] = exp(-t * t / (2.0 * 1.5 * 1.5));
        sum += win->weight[i];
    }
    for (size_t i = 0; i < 11; i++)
        win->weight[i] /= sum;
}

/* out[j] = sum_t weight[t] a[j + t * stride], j = 0..n-1: along a row with stride 1,
 * down the columns with the length of a row of the window. */
DSG_CLONES static void
filter(double *restrict out, const double *restrict a, size_t stride, size_t n,
       const ssim_window *win)
{
    const double *w = win->weight;
    if (win->taps == 11) {
        for (size_t j = 0; j < n; j++)
            out[j] = ((w[0] * a[j] + w[1] * a[j + stride]) +
                      (w[2] * a[j + 2 * stride] + w[3] * a[j + 3 * stride])) +
                     ((w[4] * a[j + 4 * stride] + w[5] * a[j + 5 * stride]) +
                      (w[6] * a[j + 6 * stride] + w[7] * a[j + 7 * stride])) +
                     ((w[8] * a[j + 8 * stride] + w[9] * a[j + 9 * stride]) +
                      w[10] * a[j + 10 * stride]);
    } else {
        for (size_t j = 0; j < n; j++)
            out[j] = ((w[0] * a[j] + w[1] * a[j + stride]) +
                      (w[2] * a[j + 2 * stride] + w[3] * a[j + 3 * stride])) +
                     ((w[4] * a[j + 4 * stride] + w[5] * a[j + 5 * stride]) +
                      w[6] * a[j + 6 * stride]);
    }
}

/* lane += the index of n pixels from their filtered moments. */
DSG_CLONES static void
add_ssim(double *restrict lane, double (*restrict m)[STRIP], size_t n, double c1,
         double c2, double unbias)
{
    for (size_t j = 0; j < STRIP; j++) {
        double x = m[0][j], y = m[1][j];
        double xx_yy = x * x + y * y, xy = x * y;
        double covariance = unbias * (m[3][j] - xy);
        double variances = unbias * (m[2][j] - xx_yy);
        double value = (2.0 * xy + c1) * (2.0 * covariance + c2) /
                       ((xx_yy + c1) * (variances + c2));
        lane[j] += j < n ? value : 0.0;
    }
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "metric.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "metric.inc.h"
#undef DSG_PRECISION
