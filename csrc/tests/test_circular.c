/* The closed forms of a blur's data step, against dense linear algebra: the matrix of
 * the operator column by column, the normal equations by elimination. */
#include "circular.h"

#include "dsg/blur.h"

#include "op_checks.h"

/* Solves m x = b, m (n, n) and b in place, with partial pivoting; false when a pivot
 * vanishes. */
static bool
eliminate(double *m, double *b, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        size_t pivot = k;
        for (size_t i = k + 1; i < n; i++)
            if (fabs(m[i * n + k]) > fabs(m[pivot * n + k]))
                pivot = i;
        if (m[pivot * n + k] == 0.0)
            return false;
        for (size_t j = 0; j < n; j++) {
            double t = m[k * n + j];
            m[k * n + j] = m[pivot * n + j];
            m[pivot * n + j] = t;
        }
        double t = b[k];
        b[k] = b[pivot];
        b[pivot] = t;
        for (size_t i = k + 1; i < n; i++) {
            double factor = m[i * n + k] / m[k * n + k];
            for (size_t j = k; j < n; j++)
                m[i * n + j] -= factor * m[k * n + j];
            b[i] -= factor * b[k];
        }
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t j = i + 1; j < n; j++)
            b[i] -= m[i * n + j] * b[j];
        b[i] /= m[i * n + i];
    }
    return true;
}

/* gram (n, n) = A^T A, A (m, n). */
static void
make_gram(double *gram, const double *a, size_t m, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < m; k++)
                sum += a[k * n + i] * a[k * n + j];
            gram[i * n + j] = sum;
        }
}

/* True when every singular value of A is below bound: bound^2 - A^T A then has a
 * Cholesky decomposition.  gram is A^T A (n, n). */
static bool
singular_values_below(const double *gram, size_t n, double bound)
{
    double *l = malloc(n * n * sizeof *l);
    bool definite = true;
    for (size_t i = 0; i < n && definite; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = (i == j ? bound * bound : 0.0) - gram[i * n + j];
            for (size_t k = 0; k < j; k++)
                sum -= l[i * n + k] * l[j * n + k];
            if (i == j && sum <= 0.0) {
                definite = false;
                break;
            }
            l[i * n + j] = i == j ? sqrt(sum) : sum / l[j * n + j];
        }
    free(l);
    return definite;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_circular.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_circular.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_circular_all_f32();
    test_circular_all_f64();
    return REPORT();
}
