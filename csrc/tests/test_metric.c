/* Metrics against the textbook formulas, closed forms and each other. */
#include "utest.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/metric.h"
#include "dsg/threads.h"

static const dsg_shape shapes[] = {
    {1, 1, 1},  {3, 1, 2},   {2, 7, 7},   {1, 7, 9},    {1, 11, 11},  {3, 11, 13},
    {2, 12, 7}, {3, 17, 29}, {1, 80, 75}, {7, 13, 142}, {1, 12, 139}, {2, 60, 64},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* The definition, window by window, with the moments about the means. */
static double
ref_ssim(const double *x, const double *y, dsg_shape s, double range,
         dsg_ssim_window kind)
{
    size_t taps = kind == DSG_SSIM_UNIFORM ? 7 : 11, n = s.h * s.w;
    double weight[11][11], sum = 0.0, total = 0.0;
    for (size_t i = 0; i < taps; i++)
        for (size_t j = 0; j < taps; j++) {
            double a = (double)i - 5.0, b = (double)j - 5.0;
            weight[i][j] = taps == 7 ? 1.0 : exp(-(a * a + b * b) / 4.5);
            sum += weight[i][j];
        }
    double factor = taps == 7 ? 49.0 / 48.0 : 1.0;
    double c1 = 1e-4 * range * range, c2 = 9e-4 * range * range;
    for (size_t c = 0; c < s.c; c++)
        for (size_t i = 0; i + taps <= s.h; i++)
            for (size_t j = 0; j + taps <= s.w; j++) {
                double mx = 0, my = 0, vx = 0, vy = 0, cxy = 0;
                for (int pass = 0; pass < 2; pass++)
                    for (size_t a = 0; a < taps; a++)
                        for (size_t b = 0; b < taps; b++) {
                            double w = weight[a][b] / sum;
                            double u = x[c * n + (i + a) * s.w + j + b];
                            double v = y[c * n + (i + a) * s.w + j + b];
                            if (pass == 0) {
                                mx += w * u;
                                my += w * v;
                            } else {
                                vx += factor * w * (u - mx) * (u - mx);
                                vy += factor * w * (v - my) * (v - my);
                                cxy += factor * w * (u - mx) * (v - my);
                            }
                        }
                total += (2 * mx * my + c1) * (2 * cxy + c2) /
                         ((mx * mx + my * my + c1) * (vx + vy + c2));
            }
    return total / (double)(s.c * (s.h - taps + 1) * (s.w - taps + 1));
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_metric.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_metric.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    run_f32();
    run_f64();
    CHECK(dsg_alloc_live() == 0);
    return REPORT();
}
