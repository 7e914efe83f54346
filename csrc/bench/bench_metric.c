/* PSNR and SSIM of 3 x 256 x 256: make bench, or
 *     DSG_NUM_THREADS=1 build/release/bench_metric */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "dsg/mem.h"
#include "dsg/metric.h"

enum { RUNS = 31, C = 3, N = 256 };

static void
report(const char *what, double *seconds, size_t runs, double bytes)
{
    qsort(seconds, runs, sizeof *seconds, ascending);
    printf("%-20s %dx%dx%d  min %8.3f ms  median %8.3f ms  %6.2f GB/s\n", what, C, N, N,
           1e3 * seconds[0], 1e3 * seconds[runs / 2], 1e-9 * bytes / seconds[0]);
}

/* Every window on its own: 11 x 11 taps, five moments, float. */
static double
naive_ssim(const float *x, const float *y)
{
    float weight[11][11], sum = 0.0f;
    for (int i = 0; i < 11; i++)
        for (int j = 0; j < 11; j++) {
            weight[i][j] = expf(-(float)((i - 5) * (i - 5) + (j - 5) * (j - 5)) / 4.5f);
            sum += weight[i][j];
        }
    double total = 0.0;
    for (int c = 0; c < C; c++)
        for (int i = 0; i + 11 <= N; i++)
            for (int j = 0; j + 11 <= N; j++) {
                float mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
                for (int a = 0; a < 11; a++)
                    for (int b = 0; b < 11; b++) {
                        float w = weight[a][b] / sum;
                        float u = x[(c * N + i + a) * N + j + b];
                        float v = y[(c * N + i + a) * N + j + b];
                        mx += w * u;
                        my += w * v;
                        xx += w * u * u;
                        yy += w * v * v;
                        xy += w * u * v;
                    }
                total +=
                    (2 * mx * my + 1e-4) * (2 * (xy - mx * my) + 9e-4) /
                    ((mx * mx + my * my + 1e-4) * (xx - mx * mx + yy - my * my + 9e-4));
            }
    return total / (C * (N - 10.0) * (N - 10.0));
}

int
main(void)
{
    const dsg_shape shape = {C, N, N};
    const size_t n = C * N * N;
    const double bytes = 2.0 * (double)n * sizeof(float);
    float *x = dsg_alloc(n, sizeof *x), *y = dsg_alloc(n, sizeof *y);
    if (!x || !y)
        return 1;
    uint64_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        y[i] = (float)(0.5 + 0.4 * sin(0.01 * (double)i));
        x[i] = y[i] + 0.1f * ((float)(s >> 40) / 16777216.0f - 0.5f);
    }

    double seconds[RUNS], out = 0.0;
    for (size_t i = 0; i < RUNS; i++) {
        double start = now();
        if (dsg_psnr_f32(&out, x, y, 1, shape, 1.0, 0.0))
            return 1;
        seconds[i] = now() - start;
    }
    report("psnr", seconds, RUNS, bytes);

    const char *names[] = {"ssim gaussian", "ssim uniform"};
    for (int kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < RUNS; i++) {
            double start = now();
            if (dsg_ssim_f32(&out, x, y, 1, shape, 1.0, kind))
                return 1;
            seconds[i] = now() - start;
        }
        report(names[kind], seconds, RUNS, bytes);
    }

    enum { FEW = 3 };
    for (size_t i = 0; i < FEW; i++) {
        double start = now();
        out += naive_ssim(x, y);
        seconds[i] = now() - start;
    }
    report("naive gaussian", seconds, FEW, bytes);
    dsg_free(x);
    dsg_free(y);
    return out == 0.0;
}
