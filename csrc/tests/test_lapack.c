/* The wrappers against loops and against the definitions of what they find. */
#include "utest.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "dsg/lapack.h"
#include "dsg/mem.h"
#include "dsg/threads.h"
#include "dsg/tridiagonal.h"

static double *
random_matrix(size_t n, uint64_t seed)
{
    double *a = dsg_alloc(n, sizeof *a);
    for (size_t i = 0; i < n; i++)
        a[i] = utest_random(&seed);
    return a;
}

/* n doubles of NaN: what a routine does not write will show. */
static double *
unset(size_t n)
{
    double *a = dsg_alloc(n, sizeof *a);
    for (size_t i = 0; i < n; i++)
        a[i] = NAN;
    return a;
}

/* sum_l op(A)[i, l] op(B)[l, j] */
static double
entry(const double *a, bool ta, size_t lda, const double *b, bool tb, size_t ldb,
      size_t i, size_t j, size_t k)
{
    double sum = 0.0;
    for (size_t l = 0; l < k; l++)
        sum += (ta ? a[l * lda + i] : a[i * lda + l]) *
               (tb ? b[j * ldb + l] : b[l * ldb + j]);
    return sum;
}

static void
test_gemm(void)
{
    const size_t sizes[][3] = {{1, 1, 1}, {2, 3, 1},   {7, 5, 3},   {9, 1, 14},
                               {1, 6, 5}, {13, 8, 17}, {33, 31, 40}};
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes; t++)
        for (int flags = 0; flags < 4; flags++)
            for (int update = 0; update < 2; update++) {
                size_t m = sizes[t][0], n = sizes[t][1], k = sizes[t][2];
                bool ta = flags & 1, tb = flags & 2;
                /* leading dimensions beyond the rows: the gap must stay untouched */
                size_t lda = (ta ? m : k) + 2, ldb = (tb ? k : n) + 1, ldc = n + 3;
                double *a = random_matrix(lda * (ta ? k : m), 1);
                double *b = random_matrix(ldb * (tb ? n : k), 2);
                double *c = random_matrix(ldc * m, 3), *c0 = random_matrix(ldc * m, 3);
                float *af = dsg_alloc(lda * (ta ? k : m), sizeof *af);
                float *bf = dsg_alloc(ldb * (tb ? n : k), sizeof *bf);
                float *cf = dsg_alloc(ldc * m, sizeof *cf);
                for (size_t i = 0; i < lda * (ta ? k : m); i++)
                    af[i] = (float)a[i];
                for (size_t i = 0; i < ldb * (tb ? n : k); i++)
                    bf[i] = (float)b[i];
                for (size_t i = 0; i < ldc * m; i++)
                    cf[i] = (float)c[i];
                double beta = update ? 0.5 : 0.0;
                if (!update) /* beta = 0 must not read what was there */
                    for (size_t i = 0; i < m; i++)
                        for (size_t j = 0; j < n; j++) {
                            c[i * ldc + j] = NAN;
                            cf[i * ldc + j] = NAN;
                        }
                dsg_gemm_f64(c, ldc, a, lda, ta, b, ldb, tb, m, n, k, -2.0, beta);
                dsg_gemm_f32(cf, ldc, af, lda, ta, bf, ldb, tb, m, n, k, -2.0f,
                             (float)beta);
                for (size_t i = 0; i < m; i++)
                    for (size_t j = 0; j < ldc; j++) {
                        double expected = c0[i * ldc + j];
                        if (j < n)
                            expected = beta * expected -
                                       2.0 * entry(a, ta, lda, b, tb, ldb, i, j, k);
                        /* k terms of at most 2 */
                        double size = 4.0 * (double)(k + 1);
                        CHECK_NEAR(c[i * ldc + j], expected, size * DBL_EPSILON);
                        CHECK_NEAR(cf[i * ldc + j], expected, size * FLT_EPSILON);
                    }
                void *blocks[] = {a, b, c, c0, af, bf, cf};
                for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
                    dsg_free(blocks[i]);
            }
}

static void
test_gram_is_symmetric_product(void)
{
    const size_t sizes[][2] = {{1, 1}, {1, 9}, {5, 5}, {8, 3}, {17, 64}};
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes; t++) {
        size_t n = sizes[t][0], m = sizes[t][1];
        double *a = random_matrix(n * m, 4), *g = unset(n * n);
        dsg_gram_f64(g, a, n, m);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) {
                CHECK_NEAR(g[i * n + j], entry(a, false, m, a, true, m, i, j, m),
                           2.0 * DBL_EPSILON * (double)m);
                CHECK(g[i * n + j] == g[j * n + i]);
            }
        dsg_free(g);
        dsg_free(a);
    }
}

/* Largest entry of B B^T - I for the p rows of B. */
static double
orthogonality(const double *b, size_t p, size_t n)
{
    double worst = 0.0;
    for (size_t i = 0; i < p; i++)
        for (size_t j = 0; j <= i; j++) {
            double d = fabs(entry(b, false, n, b, true, n, i, j, n) - (i == j));
            worst = d > worst || isnan(d) ? d : worst;
        }
    return worst;
}

/* Largest entry of A z_j - w_j z_j over the p rows z_j of z. */
static double
residual(const double *a, const double *z, const double *w, size_t p, size_t n)
{
    double worst = 0.0;
    for (size_t j = 0; j < p; j++)
        for (size_t i = 0; i < n; i++) {
            double d =
                fabs(entry(a, false, n, z, true, n, i, j, n) - w[j] * z[j * n + i]);
            worst = d > worst || isnan(d) ? d : worst;
        }
    return worst;
}

static void
test_eigenvectors(void)
{
    const size_t sizes[] = {1, 2, 3, 8, 13, 40, 65};
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes; t++) {
        size_t n = sizes[t];
        double *x = random_matrix(n * n, 5), *g = unset(n * n);
        dsg_gram_f64(g, x, n, n);
        double tol = 8.0 * DBL_EPSILON * (double)(n * n); /* ||G|| <= n^2 */

        /* in one call */
        double *a = unset(n * n), *w = unset(n);
        memcpy(a, g, n * n * sizeof *a);
        void *work = dsg_alloc(dsg_eigh_workspace(n), 1);
        CHECK(dsg_eigh_f64(a, w, n, work) == DSG_OK);
        dsg_free(work);
        for (size_t i = 1; i < n; i++)
            CHECK(w[i - 1] <= w[i]);
        CHECK(residual(g, a, w, n, n) <= tol);
        CHECK(orthogonality(a, n, n) <= 8.0 * DBL_EPSILON * (double)n);

        /* in steps, the upper half only */
        double *q = unset(n * n), *d = unset(n), *e = unset(n), *tau = unset(n);
        double *values = unset(n), *spare = unset(n), *gram = unset(n * n);
        memcpy(q, g, n * n * sizeof *q);
        work = dsg_alloc(dsg_sytrd_workspace(n), 1);
        CHECK(dsg_sytrd_f64(q, d, e, tau, n, work) == DSG_OK);
        memcpy(values, d, n * sizeof *d);
        memcpy(spare, e, n * sizeof *e);
        CHECK(dsg_sterf_f64(values, spare, n) == DSG_OK);
        for (size_t i = 0; i < n; i++)
            CHECK_NEAR(values[i], w[i], tol);
        double *ours = unset(n), *values_work = unset(2 * n);
        CHECK(dsg_tridiagonal_values_workspace(n) == 2 * n * sizeof(double));
        CHECK(dsg_tridiagonal_values(ours, d, e, n, values_work));
        for (size_t i = 0; i < n; i++)
            CHECK_NEAR(ours[i], w[i], tol);
        dsg_free(ours);
        dsg_free(values_work);
        size_t from = n / 2, p = n - from;
        double *z = unset(p * n);
        void *vectors_work = dsg_alloc(dsg_tridiagonal_vectors_workspace(n), 1);
        dsg_tridiagonal_vectors(z, d, e, values + from, p, n, vectors_work);
        CHECK(dsg_orthonormalise_f64(z, p, n, DBL_EPSILON, gram) == DSG_OK);
        CHECK(dsg_ormtr_f64(z, p, q, tau, n, work) == DSG_OK);
        CHECK(residual(g, z, values + from, p, n) <= tol);
        CHECK(orthogonality(z, p, n) <= 8.0 * DBL_EPSILON * (double)n);

        void *blocks[] = {x, g,   a,      w,     work, q, d,
                          e, tau, values, spare, gram, z, vectors_work};
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
            dsg_free(blocks[i]);
    }
}

/* T of second differences: eigenvalues 2 - 2 cos(pi j / (n + 1)), vectors of sines. */
static void
test_tridiagonal_closed_form(void)
{
    enum { N = 137 };
    double d[N], e[N], w[N], values[N], *z = unset(N * N);
    void *work = dsg_alloc(dsg_tridiagonal_vectors_workspace(N), 1);
    for (size_t i = 0; i < N; i++) {
        d[i] = 2.0;
        e[i] = -1.0;
        w[i] = 2.0 - 2.0 * cos(M_PI * (double)(i + 1) / (N + 1));
    }
    for (double shift = 0.0; shift > -6.0;
         shift -= 2.5) { /* also with values below 0 */
        for (size_t i = 0; i < N; i++)
            d[i] = 2.0 + shift;
        CHECK(dsg_tridiagonal_values(values, d, e, N, work));
        for (size_t i = 0; i < N; i++)
            CHECK_NEAR(values[i], w[i] + shift, 32.0 * DBL_EPSILON); /* ||T|| <= 8 */
    }
    for (size_t i = 0; i < N; i++)
        d[i] = 2.0;
    dsg_tridiagonal_vectors(z, d, e, w, N, N, work);
    for (size_t j = 0; j < N; j++) {
        double sign = z[j * N] > 0 ? 1.0 : -1.0;
        for (size_t i = 0; i < N; i++)
            /* the smallest gap, at either end, is 4e-4 ||T|| */
            CHECK_NEAR(sign * z[j * N + i],
                       sqrt(2.0 / (N + 1)) *
                           sin(M_PI * (double)((i + 1) * (j + 1)) / (N + 1)),
                       4.0 / 4e-4 * DBL_EPSILON);
    }
    dsg_free(z);
    dsg_free(work);
}

/* Equal eigenvalues may be refused, but not be wrong. */
static void
test_tridiagonal_values_that_coincide(void)
{
    enum { N = 30 };
    for (int kind = 0; kind < 3; kind++) {
        double d[N], e[N], w[N], expected[N], spare[N], work[2 * N];
        for (size_t i = 0; i < N; i++) {
            d[i] = kind == 0 ? 1.0 : kind == 1 ? (double)(i % 3) : i < 2;
            e[i] = kind == 2 ? 1e-9 : 0.0;
        }
        memcpy(expected, d, sizeof d);
        memcpy(spare, e, sizeof e);
        CHECK(dsg_sterf_f64(expected, spare, N) == DSG_OK);
        if (dsg_tridiagonal_values(w, d, e, N, work))
            for (size_t i = 0; i < N; i++)
                CHECK_NEAR(w[i], expected[i], 32.0 * DBL_EPSILON * N);
    }
}

/* diag(1, 1/4, 1/16, ...) with weak couplings: 10^-24 beside 1. */
static void
test_tridiagonal_values_of_many_magnitudes(void)
{
    enum { N = 40 };
    double d[N], e[N], w[N], expected[N], spare[N], work[2 * N];
    for (size_t i = 0; i < N; i++) {
        d[i] = pow(0.25, (double)i);
        e[i] = 0.1 * d[i];
    }
    memcpy(expected, d, sizeof d);
    memcpy(spare, e, sizeof e);
    CHECK(dsg_sterf_f64(expected, spare, N) == DSG_OK);
    CHECK(dsg_tridiagonal_values(w, d, e, N, work));
    for (size_t i = 0; i < N; i++)
        CHECK_NEAR(w[i], expected[i], 8.0 * DBL_EPSILON);
}

static void
test_tridiagonal_vectors_of_separate_blocks(void)
{
    /* e = 0 splits T: every vector stays in its block, and nothing divides by zero */
    const double d[5] = {1.0, 2.0, 3.0, 4.0, 5.0}, e[4] = {0};
    double z[25];
    void *work = dsg_alloc(dsg_tridiagonal_vectors_workspace(5), 1);
    dsg_tridiagonal_vectors(z, d, e, d, 5, 5, work);
    for (size_t i = 0; i < 25; i++)
        CHECK_NEAR(fabs(z[i]), i % 6 == 0, DBL_EPSILON);
    dsg_free(work);
}

static void
test_orthonormalise(void)
{
    enum { P = 6, N = 9 };
    double b[P * N] = {0}, b0[P * N], gram[P * P];
    uint64_t seed = 6;
    for (size_t i = 0; i < P; i++)
        for (size_t j = 0; j < N; j++)
            b0[i * N + j] = b[i * N + j] = (i == j) + 0.01 * utest_random(&seed);
    CHECK(dsg_orthonormalise_f64(b, P, N, 0.05, gram) == DSG_OK); /* good enough */
    CHECK(memcmp(b, b0, sizeof b) == 0);
    CHECK(dsg_orthonormalise_f64(b, P, N, 0.0, gram) == DSG_OK);
    CHECK(orthogonality(b, P, N) <= 8.0 * DBL_EPSILON * N);
    /* same span: what is left of the old rows after projection on the new is nothing */
    for (size_t i = 0; i < P; i++)
        for (size_t j = 0; j < N; j++) {
            double rest = b0[i * N + j];
            for (size_t l = 0; l < P; l++)
                rest -= entry(b0, false, N, b, true, N, i, l, N) * b[l * N + j];
            CHECK_NEAR(rest, 0.0, 8.0 * DBL_EPSILON * N);
        }

    memcpy(b, b + N, N * sizeof *b); /* two equal rows */
    CHECK(dsg_orthonormalise_f64(b, P, N, 0.0, gram) == DSG_ENOCONV);
    b[5] = NAN;
    CHECK(dsg_orthonormalise_f64(b, P, N, 0.0, gram) == DSG_ENOCONV);
    CHECK(dsg_orthonormalise_f64(b, 0, N, 0.0, gram) == DSG_OK);
}

static void
test_svd(void)
{
    const size_t sizes[][2] = {{1, 1},  {1, 6},  {6, 1},  {5, 5},
                               {7, 12}, {12, 7}, {40, 33}};
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes; t++) {
        size_t m = sizes[t][0], n = sizes[t][1], k = m < n ? m : n;
        double *a = random_matrix(m * n, 7), *a0 = random_matrix(m * n, 7);
        double *u = unset(m * k), *s = unset(k), *vt = unset(k * n), *ut = unset(k * m);
        void *work = dsg_alloc(dsg_svd_workspace(m, n), 1);
        CHECK(dsg_svd_f64(u, s, vt, a, m, n, work) == DSG_OK);
        for (size_t j = 0; j < k; j++) {
            CHECK(s[j] >= 0.0 && (j == 0 || s[j] <= s[j - 1]));
            for (size_t i = 0; i < m; i++)
                ut[j * m + i] = u[i * k + j];
        }
        double tol = 8.0 * DBL_EPSILON * (double)(m + n);
        CHECK(orthogonality(ut, k, m) <= tol);
        CHECK(orthogonality(vt, k, n) <= tol);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                double sum = 0.0;
                for (size_t l = 0; l < k; l++)
                    sum += u[i * k + l] * s[l] * vt[l * n + j];
                CHECK_NEAR(sum, a0[i * n + j], tol);
            }
        void *blocks[] = {a, a0, u, s, vt, ut, work};
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
            dsg_free(blocks[i]);
    }
}

static void
test_sizes_beyond_lapack_are_refused(void)
{
    double x[5] = {0};
    size_t big = (size_t)1 << 33;
    CHECK(dsg_eigh_workspace(big) == SIZE_MAX);
    CHECK(dsg_sytrd_workspace(big) == SIZE_MAX);
    CHECK(dsg_svd_workspace(big, 3) == SIZE_MAX);
    CHECK(dsg_svd_workspace(20000, 20000) == SIZE_MAX);
    CHECK(dsg_eigh_f64(x, x + 1, big, x + 2) == DSG_ESHAPE);
    CHECK(dsg_svd_f64(x, x + 1, x + 2, x + 3, big, 3, x + 4) == DSG_ESHAPE);
    CHECK(dsg_sytrd_f64(x, x + 1, x + 2, x + 3, big, x + 4) == DSG_ESHAPE);
    CHECK(dsg_sterf_f64(x, x + 1, big) == DSG_ESHAPE);
    CHECK(dsg_ormtr_f64(x, big, x + 1, x + 2, 1, x + 3) == DSG_ESHAPE);
    CHECK(dsg_orthonormalise_f64(x, big, 1, 0.0, x + 1) == DSG_ESHAPE);
}

typedef struct products {
    const double *a;
    double *c;
} products;

static dsg_status
multiply(void *arg, size_t i, void *scratch)
{
    (void)scratch;
    products *p = arg;
    dsg_gemm_f64(p->c + i * 400, 20, p->a, 20, false, p->a, 20, true, 20, 20, 20, 1, 0);
    return DSG_OK;
}

static void
test_calls_from_many_threads(void)
{
    products p = {.a = random_matrix(400, 8), .c = unset(32 * 400)};
    dsg_set_num_threads(4);
    CHECK(dsg_parallel_for(32, 0, multiply, &p) == DSG_OK);
    for (size_t i = 1; i < 32; i++)
        CHECK(memcmp(p.c, p.c + i * 400, 400 * sizeof(double)) == 0);
    dsg_free((void *)p.a);
    dsg_free(p.c);
}

int
main(void)
{
    CHECK(dsg_blas_config() && dsg_blas_config()[0]);
    test_calls_from_many_threads();
    test_gemm();
    test_gram_is_symmetric_product();
    test_eigenvectors();
    test_tridiagonal_closed_form();
    test_tridiagonal_values_that_coincide();
    test_tridiagonal_values_of_many_magnitudes();
    test_tridiagonal_vectors_of_separate_blocks();
    test_orthonormalise();
    test_svd();
    test_sizes_beyond_lapack_are_refused();
    CHECK(dsg_alloc_live() == 0);
    return REPORT();
}
