/* The only file that knows BLAS and LAPACK.
 *
 * LAPACK is column-major and we are row-major: on the same bytes it sees the transpose.
 * A symmetric matrix does not notice; for A = U diag(s) V^T it sees
 * A^T = V diag(s) U^T, so the two factors trade places. */
#include "dsg/lapack.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include <cblas.h>
#include <lapacke.h>

/* ---- library state ----------------------------------------------------------- */

/* One thread inside OpenBLAS: at the sizes of an image two are slower than one (its
 * decompositions are bound by memory and its workers spin between calls), and images
 * already run in threads of ours.  Whoever sets the library's own variable is taken at
 * their word. */
static void
set_threads(void)
{
    if (!getenv("OPENBLAS_NUM_THREADS"))
        openblas_set_num_threads(1);
}

void
dsg_blas_set_up(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_threads);
}

const char *
dsg_blas_config(void)
{
    return openblas_get_config();
}

/* ---- sizes ------------------------------------------------------------------- */

/* out = n; false when LAPACK's integer is too small for it. */
static bool
to_lapack(size_t n, lapack_int *out)
{
    if (n > INT_MAX)
        return false;
    *out = (lapack_int)n;
    return true;
}

/* For the routines that cannot fail.  Safe because whoever calls them has asked one of
 * the workspace functions below about the same sizes first (dsg_projector_create does
 * on set-up), and those refuse what does not fit. */
static int
to_blas(size_t n)
{
    assert(n <= INT_MAX);
    return (int)n;
}

static dsg_status
from_info(lapack_int info)
{
    if (info == 0)
        return DSG_OK;
    return info > 0 ? DSG_ENOCONV : DSG_EINTERNAL;
}

/* ---- products ---------------------------------------------------------------- */

/* gemm multiplies a matrix by a single column at a tenth of gemv's speed.  y (m) =
 * alpha op(A) x + beta y, op(A) (m, k). */
static void
gemv_f32(float *y, size_t y_step, const float *a, size_t lda, bool ta, const float *x,
         size_t x_step, size_t m, size_t k, float alpha, float beta)
{
    if (beta == 0.0f) /* which must not read y; not every version's gemv knows */
        for (size_t i = 0; i < m; i++)
            y[i * y_step] = 0.0f;
    cblas_sgemv(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, to_blas(ta ? k : m),
                to_blas(ta ? m : k), alpha, a, to_blas(lda), x, to_blas(x_step), beta,
                y, to_blas(y_step));
}

static void
gemv_f64(double *y, size_t y_step, const double *a, size_t lda, bool ta,
         const double *x, size_t x_step, size_t m, size_t k, double alpha, double beta)
{
    if (beta == 0.0) /* which must not read y; not every version's gemv knows */
        for (size_t i = 0; i < m; i++)
            y[i * y_step] = 0.0;
    cblas_dgemv(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, to_blas(ta ? k : m),
                to_blas(ta ? m : k), alpha, a, to_blas(lda), x, to_blas(x_step), beta,
                y, to_blas(y_step));
}

void
dsg_gemm_f32(float *c, size_t ldc, const float *a, size_t lda, bool ta, const float *b,
             size_t ldb, bool tb, size_t m, size_t n, size_t k, float alpha, float beta)
{
    dsg_blas_set_up();
    if (n == 1) {
        gemv_f32(c, ldc, a, lda, ta, b, tb ? 1 : ldb, m, k, alpha, beta);
        return;
    }
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans,
                tb ? CblasTrans : CblasNoTrans, to_blas(m), to_blas(n), to_blas(k),
                alpha, a, to_blas(lda), b, to_blas(ldb), beta, c, to_blas(ldc));
}

void
dsg_gemm_f64(double *c, size_t ldc, const double *a, size_t lda, bool ta,
             const double *b, size_t ldb, bool tb, size_t m, size_t n, size_t k,
             double alpha, double beta)
{
    dsg_blas_set_up();
    if (n == 1) {
        gemv_f64(c, ldc, a, lda, ta, b, tb ? 1 : ldb, m, k, alpha, beta);
        return;
    }
    cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans,
                tb ? CblasTrans : CblasNoTrans, to_blas(m), to_blas(n), to_blas(k),
                alpha, a, to_blas(lda), b, to_blas(ldb), beta, c, to_blas(ldc));
}

void
dsg_gram_f64(double *restrict g, const double *restrict a, size_t n, size_t m)
{
    dsg_blas_set_up();
    cblas_dsyrk(CblasRowMajor, CblasUpper, CblasNoTrans, to_blas(n), to_blas(m), 1.0, a,
                to_blas(m), 0.0, g, to_blas(n));
    for (size_t i = 1; i < n; i++)
        for (size_t j = 0; j < i; j++)
            g[i * n + j] = g[j * n + i];
}

/* ---- symmetric eigenproblem -------------------------------------------------- */

/* Largest order of a symmetric matrix: 2 n^2 + 6 n + 1 must stay below 2^31. */
enum { MOST_ORDER = 32000 };

/* dsyevd's documented minimum for vectors.  False when it does not fit its integer. */
static bool
eigh_sizes(size_t n, size_t *lwork, size_t *liwork)
{
    if (n > MOST_ORDER)
        return false;
    *lwork = 1 + 6 * n + 2 * n * n;
    *liwork = 3 + 5 * n;
    return true;
}

size_t
dsg_eigh_workspace(size_t n)
{
    size_t lwork, liwork;
    if (!eigh_sizes(n, &lwork, &liwork))
        return SIZE_MAX;
    return lwork * sizeof(double) + liwork * sizeof(lapack_int);
}

dsg_status
dsg_eigh_f64(double *restrict a, double *restrict w, size_t n, void *work)
{
    size_t lwork, liwork;
    if (!eigh_sizes(n, &lwork, &liwork))
        return DSG_ESHAPE;
    dsg_blas_set_up();
    double *real = work;
    lapack_int *integer = (lapack_int *)(real + lwork);
    lapack_int ln = (lapack_int)n;
    return from_info(LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'L', ln, a, ln, w, real,
                                         (lapack_int)lwork, integer,
                                         (lapack_int)liwork));
}

/* ---- the same in steps ------------------------------------------------------- */

/* Enough for the blocked forms: 64 columns, and the 65 x 64 triangle dormtr keeps. */
static size_t
sytrd_lwork(size_t n)
{
    return 64 * n + 65 * 64;
}

size_t
dsg_sytrd_workspace(size_t n)
{
    if (n > MOST_ORDER)
        return SIZE_MAX;
    return sytrd_lwork(n) * sizeof(double);
}

dsg_status
dsg_sytrd_f64(double *restrict a, double *restrict d, double *restrict e,
              double *restrict tau, size_t n, void *work)
{
    lapack_int ln;
    if (!to_lapack(n, &ln))
        return DSG_ESHAPE;
    dsg_blas_set_up();
    return from_info(LAPACKE_dsytrd_work(LAPACK_COL_MAJOR, 'L', ln, a, ln, d, e, tau,
                                         work, (lapack_int)sytrd_lwork(n)));
}

dsg_status
dsg_sterf_f64(double *restrict d, double *restrict e, size_t n)
{
    lapack_int ln;
    if (!to_lapack(n, &ln))
        return DSG_ESHAPE;
    dsg_blas_set_up();
    return from_info(LAPACKE_dsterf_work(ln, d, e));
}

dsg_status
dsg_ormtr_f64(double *restrict z, size_t p, double *restrict a,
              const double *restrict tau, size_t n, void *work)
{
    lapack_int ln, lp;
    if (!to_lapack(n, &ln) || !to_lapack(p, &lp))
        return DSG_ESHAPE;
    if (p == 0)
        return DSG_OK;
    dsg_blas_set_up();
    return from_info(LAPACKE_dormtr_work(LAPACK_COL_MAJOR, 'L', 'L', 'N', ln, lp, a, ln,
                                         tau, z, ln, work, (lapack_int)sytrd_lwork(n)));
}

/* Entries of b b^T - I above this are no rounding: L would be far from I, and the rows
 * of L^-1 b far from those of b. */
#define NEARLY_ORTHONORMAL 0.1

dsg_status
dsg_orthonormalise_f64(double *restrict b, size_t p, size_t n, double tol,
                       double *restrict gram)
{
    lapack_int lp, ln;
    if (!to_lapack(p, &lp) || !to_lapack(n, &ln))
        return DSG_ESHAPE;
    if (p == 0)
        return DSG_OK;
    dsg_blas_set_up();
    cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, lp, ln, 1.0, b, ln, 0.0, gram,
                lp);

    double worst = 0.0;
    for (size_t i = 0; i < p; i++)
        for (size_t j = 0; j <= i; j++) {
            double off = fabs(gram[i * p + j] - (i == j ? 1.0 : 0.0));
            if (!(off <= NEARLY_ORTHONORMAL)) /* also catches NaN */
                return DSG_ENOCONV;
            worst = fmax(worst, off);
        }
    if (worst <= tol)
        return DSG_OK;

    /* Row-major lower is column-major upper: gram = R^T R there, R^T = L here. */
    lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', lp, gram, lp);
    if (info != 0)
        return from_info(info);
    cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, lp,
                ln, 1.0, gram, lp, b, ln);
    return DSG_OK;
}

/* ---- singular values --------------------------------------------------------- */

/* Largest short side of an SVD: dgesdd adds up its workspace, 4 k^2 + 7 k doubles and
 * some for the blocks, in an integer of its own. */
enum { MOST_SHORT_SIDE = 16000 };

/* dgesdd's integers and, asked from the library, its optimal number of doubles.  False
 * when a size does not fit LAPACK's integer. */
static bool
svd_sizes(size_t m, size_t n, size_t *lwork, size_t *liwork)
{
    lapack_int lm, ln;
    size_t k = m < n ? m : n;
    if (!to_lapack(m, &lm) || !to_lapack(n, &ln) || k > MOST_SHORT_SIDE)
        return false;
    lapack_int lk = (lapack_int)k, ignored;
    double none, best;
    if (LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, 'S', ln, lm, &none, ln, &none, &none, ln,
                            &none, lk, &best, -1, &ignored) != 0)
        return false;
    *lwork = (size_t)best;
    *liwork = 8 * k;
    return *lwork <= INT_MAX;
}

size_t
dsg_svd_workspace(size_t m, size_t n)
{
    size_t lwork, liwork;
    if (!svd_sizes(m, n, &lwork, &liwork))
        return SIZE_MAX;
    return lwork * sizeof(double) + liwork * sizeof(lapack_int);
}

dsg_status
dsg_svd_f64(double *restrict u, double *restrict s, double *restrict vt,
            double *restrict a, size_t m, size_t n, void *work)
{
    size_t lwork, liwork;
    if (!svd_sizes(m, n, &lwork, &liwork))
        return DSG_ESHAPE;
    dsg_blas_set_up();
    lapack_int lm = (lapack_int)m, ln = (lapack_int)n, lk = lm < ln ? lm : ln;
    double *real = work;
    lapack_int *integer = (lapack_int *)(real + lwork);
    return from_info(LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, 'S', ln, lm, a, ln, s, vt,
                                         ln, u, lk, real, (lapack_int)lwork, integer));
}
