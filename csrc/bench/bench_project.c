/* Preparing and applying the projector: make bench, or
 *     DSG_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 build/release/bench_project
 *
 * Beside them: the SVD of every channel in double, and the products by U_r and V_r as
 * loops.  For scale, float torch.linalg.svd of 3 x 256 x 256 does what `prepare`
 * does. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "dsg/lapack.h"
#include "dsg/mem.h"
#include "dsg/project.h"

enum { RUNS = 21, C = 3 };

static void
report(const char *what, size_t n, double *seconds, size_t runs, double flops)
{
    qsort(seconds, runs, sizeof *seconds, ascending);
    printf("%-28s 3x%zux%-4zu min %9.3f ms  median %9.3f ms", what, n, n,
           1e3 * seconds[0], 1e3 * seconds[runs / 2]);
    if (flops > 0.0)
        printf("  %6.1f GFLOP/s", 1e-9 * flops / seconds[0]);
    putchar('\n');
}

/* Noise on a smooth image: a spectrum like that of a state half-way down. */
static void
fill(float *x, size_t n)
{
    uint64_t s = 1;
    for (size_t i = 0; i < C * n * n; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        double u = (double)(s >> 11) / 9007199254740992.0 - 0.5;
        double row = (double)(i / n % n) / (double)n, col = (double)(i % n) / (double)n;
        x[i] = (float)(0.3 * u + row * col - 0.2 * row + 0.1);
    }
}

/* g = U U^T g for the r rows of u, once on the left: a quarter of the work. */
static void
naive_left(float *g, const float *u, float *t, size_t r, size_t n)
{
    for (size_t l = 0; l < r; l++)
        for (size_t j = 0; j < n; j++) {
            float dot = 0.0f;
            for (size_t i = 0; i < n; i++)
                dot += u[l * n + i] * g[i * n + j];
            t[l * n + j] = dot;
        }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = 0.0f;
            for (size_t l = 0; l < r; l++)
                sum += u[l * n + i] * t[l * n + j];
            g[i * n + j] = sum;
        }
}

static int
run(size_t n)
{
    const char *names[] = {"per channel", "official"};
    const dsg_rank_rule rules[] = {DSG_RANK_PER_CHANNEL, DSG_RANK_OFFICIAL};
    double seconds[RUNS];
    float *x = dsg_alloc(C * n * n, sizeof *x), *g = dsg_alloc(C * n * n, sizeof *g);
    float *t = dsg_alloc(n * n, sizeof *t);
    dsg_projector_f32 *p = NULL;
    if (!x || !g || !t || dsg_projector_create_f32(&p, 1, (dsg_shape){C, n, n}))
        return 1;
    fill(x, n);
    memcpy(g, x, C * n * n * sizeof *g);

    size_t r = 0;
    for (size_t k = 0; k < 2; k++) {
        dsg_project_options o = {.energy = 0.99, .rule = rules[k], .sides = DSG_BOTH};
        char what[64];
        for (size_t i = 0; i < RUNS; i++) {
            double start = now();
            if (dsg_projector_prepare_f32(p, x, &o))
                return 1;
            seconds[i] = now() - start;
        }
        r = dsg_projector_ranks_f32(p)[0];
        snprintf(what, sizeof what, "prepare %s, r=%zu", names[k], r);
        report(what, n, seconds, RUNS, 0.0);

        void *ws = dsg_alloc(dsg_projector_workspace_f32(p), 1);
        for (size_t i = 0; i < RUNS; i++) {
            double start = now();
            dsg_projector_apply_f32(p, 0, g, ws);
            seconds[i] = now() - start;
        }
        dsg_free(ws);
        double nn = (double)(n * n), rr = (double)r, kept = (double)(n - r);
        double direct = 4.0 * nn * rr + 4.0 * (double)n * rr * rr;
        snprintf(what, sizeof what, "apply %s, r=%zu", names[k], r);
        report(what, n, seconds, RUNS, C * (2 * r > n ? 8.0 * nn * kept : direct));
    }

    double *a = dsg_alloc(n * n, sizeof *a), *u = dsg_alloc(n * n, sizeof *u);
    double *vt = dsg_alloc(n * n, sizeof *vt), *s = dsg_alloc(n, sizeof *s);
    void *work = dsg_alloc(dsg_svd_workspace(n, n), 1);
    for (size_t i = 0; i < RUNS; i++) {
        double start = now();
        for (size_t c = 0; c < C; c++) {
            for (size_t j = 0; j < n * n; j++)
                a[j] = x[c * n * n + j];
            if (dsg_svd_f64(u, s, vt, a, n, n, work))
                return 1;
        }
        seconds[i] = now() - start;
    }
    report("SVD in double", n, seconds, RUNS, 0.0);

    enum { FEW = 3 };
    for (size_t i = 0; i < FEW; i++) {
        double start = now();
        for (size_t c = 0; c < C; c++)
            naive_left(g + c * n * n, x, t, r, n);
        seconds[i] = now() - start;
    }
    report("naive left side", n, seconds, FEW, C * 4.0 * (double)(n * n * r));

    dsg_projector_destroy_f32(p);
    void *blocks[] = {x, g, t, a, u, vt, s, work};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        dsg_free(blocks[i]);
    return 0;
}

int
main(void)
{
    return run(64) || run(256);
}
