/* What every data step must satisfy, closed form or not, against dense linear algebra
 * in double on the operator's matrix; and an operator of plain loops without a closed
 * form, for conjugate gradients.
 *
 * Sizes are small: the matrix is found column by column. */
#ifndef DSG_DATA_STEP_CHECKS_H
#define DSG_DATA_STEP_CHECKS_H

#include "dsg/data_step.h"
#include "op_checks.h"

/* ---- naive linear algebra ------------------------------------------------------ */

/* y (m) = A x, or y (n) = A^T x, A (m, n). */
static inline void
dense_times(double *y, const double *a, bool transposed, const double *x, size_t m,
            size_t n)
{
    for (size_t i = 0; i < (transposed ? n : m); i++)
        y[i] = 0.0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            if (transposed)
                y[j] += a[i * n + j] * x[i];
            else
                y[i] += a[i * n + j] * x[j];
        }
}

static inline double
dense_norm2(const double *x, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

/* x <- M^-1 x by elimination with partial pivoting; M (n, n) is destroyed. */
static inline void
dense_solve(double *m, double *x, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        size_t pivot = k;
        for (size_t i = k + 1; i < n; i++)
            if (fabs(m[i * n + k]) > fabs(m[pivot * n + k]))
                pivot = i;
        for (size_t j = 0; j < n; j++) {
            double swap = m[k * n + j];
            m[k * n + j] = m[pivot * n + j];
            m[pivot * n + j] = swap;
        }
        double swap = x[k];
        x[k] = x[pivot];
        x[pivot] = swap;
        for (size_t i = k + 1; i < n; i++) {
            double f = m[i * n + k] / m[k * n + k];
            for (size_t j = k; j < n; j++)
                m[i * n + j] -= f * m[k * n + j];
            x[i] -= f * x[k];
        }
    }
    for (size_t k = n; k-- > 0;) {
        for (size_t j = k + 1; j < n; j++)
            x[k] -= m[k * n + j] * x[j];
        x[k] /= m[k * n + k];
    }
}

/* Largest singular value: the Gram matrix squared 26 times is a power of it so high
 * that each of its columns is the singular vector, to where values within 1e-7 of the
 * largest are no matter. */
static inline double
dense_largest(const double *a, size_t m, size_t n)
{
    bool wide = m < n;
    size_t k = wide ? m : n, longest = wide ? n : m, column = 0;
    double *g = calloc(k * k, sizeof *g), *g2 = malloc(k * k * sizeof *g2);
    double *x = malloc(k * sizeof *x), *y = malloc(longest * sizeof *y), largest = 0.0;
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++)
            for (size_t l = 0; l < longest; l++)
                g[i * k + j] +=
                    wide ? a[i * n + l] * a[j * n + l] : a[l * n + i] * a[l * n + j];
    for (int t = 0; t < 26; t++) {
        largest = 0.0;
        for (size_t i = 0; i < k; i++) /* the largest entry is on the diagonal */
            if (g[i * k + i] > largest) {
                largest = g[i * k + i];
                column = i;
            }
        if (largest == 0.0)
            break;
        for (size_t i = 0; i < k * k; i++) {
            g[i] /= largest;
            g2[i] = 0.0;
        }
        for (size_t i = 0; i < k; i++)
            for (size_t l = 0; l < k; l++)
                for (size_t j = 0; j < k; j++)
                    g2[i * k + j] += g[i * k + l] * g[l * k + j];
        memcpy(g, g2, k * k * sizeof *g);
    }
    double value = 0.0;
    if (largest > 0.0) {
        for (size_t i = 0; i < k; i++)
            x[i] = g[i * k + column];
        dense_times(y, a, wide, x, m, n);
        value = dense_norm2(y, longest) / dense_norm2(x, k);
    }
    free(g);
    free(g2);
    free(x);
    free(y);
    return value;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "data_step_checks.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "data_step_checks.inc.h"
#undef DSG_PRECISION

#endif
