#include "dsg/tridiagonal.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "dsg/real.h"

/* Vectors are found LANES at a time, entry i of all of them side by side: the
 * recurrences run along i, so only across vectors is there anything to vectorise. */
#define LANES 8

size_t
dsg_tridiagonal_vectors_workspace(size_t n)
{
    return 3 * n * LANES * sizeof(double);
}

/* Entries of a vector below this are as good as 0: squared against a length of 1 they
 * are far below any rounding, and products of two are still no denormal numbers. */
#define NEGLIGIBLE 1e-100

/* One group.  up and down have n * LANES doubles; z too, entry-major.
 *
 *     up[i]    -e_i / D_i          z_i     = up[i] z_{i+1}      i < k
 *     down[i]  -e_{i-1} / D'_i     z_i     = down[i] z_{i-1}    i > k
 *
 * A pivot that vanishes is replaced by one far below the rounding of T. */
DSG_CLONES static void
solve_group(double *restrict z, double *restrict up, double *restrict down,
            const double *restrict d, const double *restrict e,
            const double *restrict w, size_t n, double tiny)
{
    /* From the top; z holds the pivots D for the moment. */
    for (size_t i = 0; i < n; i++) {
        double left = i > 0 ? e[i - 1] : 0.0, right = i + 1 < n ? e[i] : 0.0;
        for (size_t l = 0; l < LANES; l++) {
            double pivot = d[i] - w[l];
            if (i > 0)
                pivot += left * up[(i - 1) * LANES + l];
            pivot = fabs(pivot) < tiny ? -tiny : pivot;
            z[i * LANES + l] = pivot;
            up[i * LANES + l] = -right / pivot;
        }
    }

    /* From the bottom, looking for the smallest |gamma|. */
    double best[LANES], twist[LANES];
    for (size_t l = 0; l < LANES; l++) {
        best[l] = INFINITY;
        twist[l] = 0.0;
    }
    for (size_t i = n; i-- > 0;) {
        double left = i > 0 ? e[i - 1] : 0.0, right = i + 1 < n ? e[i] : 0.0;
        for (size_t l = 0; l < LANES; l++) {
            double below = i + 1 < n ? right * down[(i + 1) * LANES + l] : 0.0;
            double pivot = d[i] - w[l] + below;
            double gamma = fabs(z[i * LANES + l] + below);
            pivot = fabs(pivot) < tiny ? -tiny : pivot;
            down[i * LANES + l] = -left / pivot;
            twist[l] = gamma < best[l] ? (double)i : twist[l];
            best[l] = gamma < best[l] ? gamma : best[l];
        }
    }

    /* Outward from the twist.  Entries too small to matter become 0: denormal numbers
     * would slow down this and all that follows. */
    for (size_t i = n; i-- > 0;)
        for (size_t l = 0; l < LANES; l++) {
            double above = i + 1 < n ? up[i * LANES + l] * z[(i + 1) * LANES + l] : 0.0;
            above = fabs(above) < NEGLIGIBLE ? 0.0 : above;
            double start = (double)i == twist[l] ? 1.0 : 0.0;
            z[i * LANES + l] = (double)i < twist[l] ? above : start;
        }
    for (size_t i = 1; i < n; i++)
        for (size_t l = 0; l < LANES; l++) {
            double next = down[i * LANES + l] * z[(i - 1) * LANES + l];
            next = fabs(next) < NEGLIGIBLE ? 0.0 : next;
            z[i * LANES + l] = (double)i > twist[l] ? next : z[i * LANES + l];
        }

    /* Unit length. */
    double sum[LANES] = {0};
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < LANES; l++)
            sum[l] += z[i * LANES + l] * z[i * LANES + l];
    for (size_t l = 0; l < LANES; l++)
        sum[l] = 1.0 / sqrt(sum[l]);
    for (size_t i = 0; i < n; i++)
        for (size_t l = 0; l < LANES; l++)
            z[i * LANES + l] *= sum[l];
}

void
dsg_tridiagonal_vectors(double *restrict z, const double *restrict d,
                        const double *restrict e, const double *restrict w, size_t p,
                        size_t n, void *work)
{
    double *group = work, *up = group + n * LANES, *down = up + n * LANES;

    double norm = 0.0;
    for (size_t i = 0; i < n; i++) {
        double row = fabs(d[i]) + (i > 0 ? fabs(e[i - 1]) : 0.0) +
                     (i + 1 < n ? fabs(e[i]) : 0.0);
        norm = fmax(norm, row);
    }
    double tiny = fmax(norm * DBL_EPSILON * DBL_EPSILON, DBL_MIN);

    for (size_t j = 0; j < p; j += LANES) {
        /* A short last group repeats its last eigenvalue. */
        size_t lanes = p - j < LANES ? p - j : LANES;
        double shift[LANES];
        for (size_t l = 0; l < LANES; l++)
            shift[l] = w[j + (l < lanes ? l : lanes - 1)];
        solve_group(group, up, down, d, e, shift, n, tiny);
        for (size_t l = 0; l < lanes; l++)
            for (size_t i = 0; i < n; i++)
                z[(j + l) * n + i] = group[i * LANES + l];
    }
}

/* ---- values -------------------------------------------------------------------- *
 *
 * f_i(x), the leading i x i minor of T - x I, obeys
 *     f_i = (d_i - x) f_{i-1} - e_{i-1}^2 f_{i-2},
 * and as many eigenvalues lie below x as there are changes of sign in f_0 = 1, f_1, ...
 * Counting separates the eigenvalues; from a point with j of them below, Laguerre's
 * iteration rises to number j without ever passing it, cubically in the end.  All of it
 * runs for BLOCK points side by side. */
enum { BLOCK = 64 };

/* Every RESCALE rows the minors, beyond these limits, are brought back by them.  In so
 * many rows of a T of norm 1 they grow at most 4^8 times, and shrinking each time by as
 * much as eps still leaves them a normal number. */
enum { RESCALE = 8 };
#define HUGE_MINOR 0x1p+200
#define TINY_MINOR 0x1p-200

/* Exponent between two points of the first count: 62 of them fall from the top of the
 * spectrum by 2^-52, to its rounding. */
#define TABLE_STEP 0.85

/* count[l] = number of eigenvalues below x[l]. */
DSG_CLONES static void
count_below(double *restrict count, const double *restrict x, const double *restrict d,
            const double *restrict e2, size_t n)
{
    double f[BLOCK], g[BLOCK]; /* f_i, f_{i-1} */
    for (size_t l = 0; l < BLOCK; l++) {
        f[l] = 1.0;
        g[l] = 0.0;
        count[l] = 0.0;
    }
    for (size_t i = 0; i < n; i++) {
        double di = d[i], e2i = i > 0 ? e2[i - 1] : 0.0;
        for (size_t l = 0; l < BLOCK; l++) {
            double next = (di - x[l]) * f[l] - e2i * g[l];
            count[l] += (next < 0.0) != (f[l] < 0.0) ? 1.0 : 0.0;
            g[l] = f[l];
            f[l] = next;
        }
        if (i % RESCALE == RESCALE - 1)
            for (size_t l = 0; l < BLOCK; l++) {
                double size = fabs(f[l]) + fabs(g[l]);
                double scale = size > HUGE_MINOR   ? TINY_MINOR
                               : size < TINY_MINOR ? HUGE_MINOR
                                                   : 1.0;
                f[l] *= scale;
                g[l] *= scale;
            }
    }
}

/* x[l] += step[l] towards the next eigenvalue above. */
DSG_CLONES static void
laguerre(double *restrict x, double *restrict step, const double *restrict d,
         const double *restrict e2, size_t n)
{
    /* the minor and its two derivatives, each with its predecessor */
    double f[BLOCK], g[BLOCK], f1[BLOCK], g1[BLOCK], f2[BLOCK], g2[BLOCK];
    for (size_t l = 0; l < BLOCK; l++) {
        f[l] = 1.0;
        g[l] = f1[l] = g1[l] = f2[l] = g2[l] = 0.0;
    }
    for (size_t i = 0; i < n; i++) {
        double di = d[i], e2i = i > 0 ? e2[i - 1] : 0.0;
        for (size_t l = 0; l < BLOCK; l++) {
            double a = di - x[l];
            double next2 = a * f2[l] - 2.0 * f1[l] - e2i * g2[l];
            double next1 = a * f1[l] - f[l] - e2i * g1[l];
            double next = a * f[l] - e2i * g[l];
            g2[l] = f2[l];
            g1[l] = f1[l];
            g[l] = f[l];
            f2[l] = next2;
            f1[l] = next1;
            f[l] = next;
        }
        if (i % RESCALE == RESCALE - 1)
            for (size_t l = 0; l < BLOCK; l++) {
                double size = fabs(f[l]) + fabs(g[l]);
                double scale = size > HUGE_MINOR   ? TINY_MINOR
                               : size < TINY_MINOR ? HUGE_MINOR
                                                   : 1.0;
                f[l] *= scale;
                g[l] *= scale;
                f1[l] *= scale;
                g1[l] *= scale;
                f2[l] *= scale;
                g2[l] *= scale;
            }
    }
    double m = (double)n;
    for (size_t l = 0; l < BLOCK; l++) {
        double s1 = f1[l] / f[l], s2 = s1 * s1 - f2[l] / f[l];
        double square = (m - 1.0) * (m * s2 - s1 * s1);
        double root = sqrt(square > 0.0 ? square : 0.0);
        step[l] = f[l] == 0.0 ? 0.0 : m / (root - s1);
        x[l] += step[l];
    }
}

/* lo[l] < eigenvalue number j[l] < hi[l], with c_lo and c_hi eigenvalues below the two.
 * Narrows the brackets until either nothing else lies between lo and the eigenvalue,
 * which is c_lo == j, or hi - lo <= tol; false when that takes too long. */
static bool
separate(double *restrict lo, double *restrict hi, double *restrict c_lo,
         double *restrict c_hi, const double *restrict j, const double *restrict d,
         const double *restrict e2, size_t n, double tol)
{
    enum { MOST_PROBES = 80 };
    for (size_t t = 0; t < MOST_PROBES; t++) {
        double x[BLOCK], count[BLOCK];
        bool all = true;
        for (size_t l = 0; l < BLOCK; l++) {
            /* As if they lay evenly; every third time by halves, lest they do not. */
            double part = t % 3 == 2 ? 0.5 : (j[l] - c_lo[l]) / (c_hi[l] - c_lo[l]);
            x[l] = lo[l] + part * (hi[l] - lo[l]);
            all = all && (c_lo[l] == j[l] || hi[l] - lo[l] <= tol);
        }
        if (all)
            return true;
        count_below(count, x, d, e2, n);
        for (size_t l = 0; l < BLOCK; l++) {
            if (c_lo[l] == j[l])
                continue;
            if (count[l] <= j[l]) {
                lo[l] = x[l];
                c_lo[l] = count[l];
            } else {
                hi[l] = x[l];
                c_hi[l] = count[l];
            }
        }
    }
    return false;
}

/* Raises lo to the eigenvalues; hi bounds them.  False when that takes too long. */
static bool
rise(double *restrict lo, const double *restrict hi, const double *restrict d,
     const double *restrict e2, size_t n, double tol)
{
    enum { MOST_STEPS = 30 };
    bool arrived[BLOCK];
    for (size_t l = 0; l < BLOCK; l++)
        arrived[l] = hi[l] - lo[l] <= tol;
    for (size_t t = 0; t < MOST_STEPS; t++) {
        double x[BLOCK], step[BLOCK];
        memcpy(x, lo, sizeof x);
        laguerre(x, step, d, e2, n);
        bool all = true;
        for (size_t l = 0; l < BLOCK; l++) {
            /* Whoever has arrived stays: one more step could take rounding for the way
             * to the next eigenvalue. */
            lo[l] = arrived[l] ? lo[l] : fmin(x[l], hi[l]);
            arrived[l] = arrived[l] || step[l] <= tol;
            all = all && arrived[l];
        }
        if (all)
            return true;
    }
    return false;
}

size_t
dsg_tridiagonal_values_workspace(size_t n)
{
    return 2 * n * sizeof(double);
}

bool
dsg_tridiagonal_values(double *restrict w, const double *restrict d,
                       const double *restrict e, size_t n, void *work)
{
    double *own_d = work, *e2 = own_d + n;

    /* T scaled to a norm of about 1 by a power of two: the minors then cannot leave the
     * range of numbers between two rescalings. */
    double norm = 0.0;
    for (size_t i = 0; i < n; i++)
        norm = fmax(norm, fabs(d[i]) + (i + 1 < n ? 2.0 * fabs(e[i]) : 0.0));
    int exponent = 0;
    frexp(norm, &exponent);
    double top = -INFINITY, bottom = INFINITY, trace = 0.0, squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        double left = i > 0 ? ldexp(fabs(e[i - 1]), -exponent) : 0.0;
        double right = i + 1 < n ? ldexp(fabs(e[i]), -exponent) : 0.0;
        own_d[i] = ldexp(d[i], -exponent);
        e2[i] = right * right;
        top = fmax(top, own_d[i] + left + right);
        bottom = fmin(bottom, own_d[i] - left - right);
        trace += own_d[i];
        squares += own_d[i] * own_d[i] + 2.0 * e2[i];
    }
    const double tol = 4.0 * DBL_EPSILON;
    top += tol;
    bottom -= tol;

    /* Counts at points falling by a constant factor: eigenvalues of a Gram matrix may
     * differ by as much as numbers can. */
    double table[BLOCK], counts[BLOCK];
    for (size_t l = 0; l < BLOCK; l++)
        table[l] = top * exp2(-TABLE_STEP * (double)l);
    table[BLOCK - 2] = -(double)n * tol;
    table[BLOCK - 1] = bottom;
    count_below(counts, table, own_d, e2, n);

    for (size_t from = 0; from < n; from += BLOCK) {
        double j[BLOCK], lo[BLOCK], hi[BLOCK], c_lo[BLOCK], c_hi[BLOCK];
        for (size_t l = 0; l < BLOCK; l++) {
            j[l] = (double)(from + l < n ? from + l : n - 1);
            lo[l] = bottom;
            hi[l] = top;
            c_lo[l] = 0.0;
            c_hi[l] = (double)n;
            for (size_t t = 0; t < BLOCK; t++)
                if (counts[t] > j[l]) {
                    hi[l] = table[t];
                    c_hi[l] = counts[t];
                } else {
                    if (table[t] > lo[l]) {
                        lo[l] = table[t];
                        c_lo[l] = counts[t];
                    }
                    break;
                }
        }
        if (!separate(lo, hi, c_lo, c_hi, j, own_d, e2, n, tol) ||
            !rise(lo, hi, own_d, e2, n, tol))
            return false;
        for (size_t l = 0; l < BLOCK && from + l < n; l++)
            w[from + l] = lo[l];
    }

    /* Nothing above relies on luck, but this is cheap. */
    double rounding = tol * (double)n;
    for (size_t i = 0; i < n; i++) {
        trace -= w[i];
        squares -= w[i] * w[i];
        if (i > 0 && !(w[i] >= w[i - 1] - tol))
            return false;
    }
    for (size_t i = 0; i < n; i++)
        w[i] = ldexp(w[i], exponent);
    return fabs(trace) <= rounding && fabs(squares) <= rounding;
}
