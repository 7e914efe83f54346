/* The projector against a Jacobi SVD, the properties of a projection, and the ranks
 * worked out by hand. */
#include "utest.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/project.h"
#include "dsg/threads.h"

static const dsg_shape shapes[] = {
    {1, 1, 1}, {2, 1, 6},   {3, 6, 1},   {1, 2, 2},   {3, 5, 7},   {3, 7, 5},
    {2, 8, 8}, {7, 13, 13}, {3, 16, 12}, {1, 12, 31}, {3, 32, 32}, {1, 41, 40},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* Singular values s (k, descending) of z (h, w), and of each side the vectors as rows
 * of u (k, h) and v (k, w): one-sided Jacobi, rotating rows of z (or columns, if they
 * are the fewer) until they are orthogonal. */
static void
ref_svd(double *u, double *s, double *v, const double *z, size_t h, size_t w)
{
    size_t k = h < w ? h : w, n = h < w ? w : h;
    double *m = calloc(k * n, sizeof *m), *q = calloc(k * k, sizeof *q);
    for (size_t i = 0; i < k; i++) {
        q[i * k + i] = 1.0;
        for (size_t j = 0; j < n; j++)
            m[i * n + j] = h < w ? z[i * w + j] : z[j * w + i];
    }
    for (int sweep = 0, turned = 1; turned && sweep < 60; sweep++) {
        turned = 0;
        for (size_t a = 0; a < k; a++)
            for (size_t b = a + 1; b < k; b++) {
                double aa = 0, bb = 0, ab = 0;
                for (size_t j = 0; j < n; j++) {
                    aa += m[a * n + j] * m[a * n + j];
                    bb += m[b * n + j] * m[b * n + j];
                    ab += m[a * n + j] * m[b * n + j];
                }
                if (fabs(ab) <= 1e-16 * sqrt(aa * bb))
                    continue;
                turned = 1;
                double t = 0.5 * atan2(2.0 * ab, aa - bb), c = cos(t), d = sin(t);
                for (size_t j = 0; j < n; j++) {
                    double x = m[a * n + j], y = m[b * n + j];
                    m[a * n + j] = c * x + d * y;
                    m[b * n + j] = c * y - d * x;
                }
                for (size_t j = 0; j < k; j++) {
                    double x = q[a * k + j], y = q[b * k + j];
                    q[a * k + j] = c * x + d * y;
                    q[b * k + j] = c * y - d * x;
                }
            }
    }
    double *norm = calloc(k, sizeof *norm);
    for (size_t i = 0; i < k; i++) {
        for (size_t j = 0; j < n; j++)
            norm[i] += m[i * n + j] * m[i * n + j];
        norm[i] = sqrt(norm[i]);
    }
    double *own = h < w ? u : v, *other = h < w ? v : u;
    for (size_t r = 0; r < k; r++) {
        size_t best = 0;
        for (size_t i = 1; i < k; i++)
            if (norm[i] > norm[best])
                best = i;
        s[r] = norm[best];
        norm[best] = -1.0;
        for (size_t j = 0; j < k; j++)
            own[r * k + j] = q[best * k + j];
        for (size_t j = 0; j < n; j++)
            other[r * n + j] = s[r] > 0.0 ? m[best * n + j] / s[r] : 0.0;
    }
    free(norm);
    free(m);
    free(q);
}

/* g (h, w) = P g by the first r rows of u and of v; sides as in the options. */
static void
ref_apply(double *g, const double *u, const double *v, size_t h, size_t w, size_t r,
          unsigned sides)
{
    double *t = calloc(h * w, sizeof *t);
    if (sides & DSG_LEFT) {
        for (size_t l = 0; l < r; l++)
            for (size_t j = 0; j < w; j++) {
                double dot = 0.0;
                for (size_t i = 0; i < h; i++)
                    dot += u[l * h + i] * g[i * w + j];
                for (size_t i = 0; i < h; i++)
                    t[i * w + j] += u[l * h + i] * dot;
            }
        memcpy(g, t, h * w * sizeof *g);
        memset(t, 0, h * w * sizeof *t);
    }
    if (sides & DSG_RIGHT) {
        for (size_t l = 0; l < r; l++)
            for (size_t i = 0; i < h; i++) {
                double dot = 0.0;
                for (size_t j = 0; j < w; j++)
                    dot += g[i * w + j] * v[l * w + j];
                for (size_t j = 0; j < w; j++)
                    t[i * w + j] += dot * v[l * w + j];
            }
        memcpy(g, t, h * w * sizeof *g);
    }
    free(t);
}

/* Ranks of c channels with singular values s (c, k) by the four rules. */
static void
ref_ranks(size_t *ranks, const double *s, size_t c, size_t k,
          const dsg_project_options *o)
{
    double all = 0.0, running = 0.0;
    size_t sum = 0, position = 0;
    for (size_t i = 0; i < c * k; i++)
        all += s[i] * s[i];
    for (size_t i = 0; i < c * k && position == 0; i++) {
        running += s[i] * s[i];
        if (running >= o->energy * all)
            position = i + 1;
    }
    for (size_t i = 0; i < c; i++) {
        double total = 0.0, kept = 0.0;
        for (size_t j = 0; j < k; j++)
            total += s[i * k + j] * s[i * k + j];
        ranks[i] = 0;
        while (ranks[i] < k && kept < o->energy * total * (1 - 1e-13)) {
            kept += s[i * k + ranks[i]] * s[i * k + ranks[i]];
            ranks[i]++;
        }
        sum += ranks[i];
    }
    for (size_t i = 0; i < c && o->rule != DSG_RANK_PER_CHANNEL; i++) {
        ranks[i] = o->rule == DSG_RANK_MEAN       ? sum / c
                   : o->rule == DSG_RANK_OFFICIAL ? position / 3
                                                  : o->fixed_rank;
        ranks[i] = ranks[i] < k ? ranks[i] : k;
    }
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_project.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_project.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    run_f32();
    run_f64();
    CHECK(dsg_alloc_live() == 0);
    return REPORT();
}
