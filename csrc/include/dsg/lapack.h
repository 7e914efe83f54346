/* The few BLAS and LAPACK routines the core calls; only lapack.c includes their
 * headers.  OpenBLAS is kept to one thread (see lapack.c): two make these sizes slower,
 * and the core has its own threads over the batch.  Its thread count is one number for
 * all users of the same libopenblas in the process; NumPy and PyTorch from wheels bring
 * their own. */
#ifndef DSG_LAPACK_H
#define DSG_LAPACK_H

#include <stdbool.h>
#include <stddef.h>

#include "dsg/status.h"

/* Sets that thread count, once, unless the environment has OPENBLAS_NUM_THREADS.  The
 * functions below do it too if nobody has; a binding calls it on import, where reading
 * the environment meets no other thread and the effect surprises nobody later. */
void dsg_blas_set_up(void);

/* C (m, n) = alpha * op(A) op(B) + beta * C, row-major with leading dimensions;
 * op transposes where the flag is set, k is the inner size. */
void dsg_gemm_f32(float *c, size_t ldc, const float *a, size_t lda, bool ta,
                  const float *b, size_t ldb, bool tb, size_t m, size_t n, size_t k,
                  float alpha, float beta);
void dsg_gemm_f64(double *c, size_t ldc, const double *a, size_t lda, bool ta,
                  const double *b, size_t ldb, bool tb, size_t m, size_t n, size_t k,
                  double alpha, double beta);

/* G (n, n) = A A^T for A (n, m) row-major; both triangles are written. */
void dsg_gram_f64(double *restrict g, const double *restrict a, size_t n, size_t m);

/* Symmetric eigenproblem, eigenvalues ascending in w, eigenvector j in ROW j of a,
 * which holds the matrix on entry (row-major, destroyed).  work has
 * dsg_eigh_workspace(n) bytes.  DSG_ENOCONV when LAPACK says so.
 *
 * All workspace functions return SIZE_MAX for sizes LAPACK's integers cannot hold. */
size_t dsg_eigh_workspace(size_t n);
dsg_status dsg_eigh_f64(double *restrict a, double *restrict w, size_t n, void *work);

/* The same in steps named after LAPACK's routines, for callers that want few of the
 * vectors.
 *
 * Tridiagonal form: A = Q T Q^T, T with diagonal d (n) and off-diagonal e (n - 1); Q is
 * left in a and tau (n) as reflectors.  Eigenvalues of T: ascending in d, e destroyed.
 * Back-transformation: rows of z (p, n), vectors of T, become vectors of A.  work has
 * dsg_sytrd_workspace(n) bytes. */
size_t dsg_sytrd_workspace(size_t n);
dsg_status dsg_sytrd_f64(double *restrict a, double *restrict d, double *restrict e,
                         double *restrict tau, size_t n, void *work);
dsg_status dsg_sterf_f64(double *restrict d, double *restrict e, size_t n);
dsg_status dsg_ormtr_f64(double *restrict z, size_t p, double *restrict a,
                         const double *restrict tau, size_t n, void *work);

/* Makes the rows of b (p, n) orthonormal without changing their span: b <- L^-1 b with
 * b b^T = L L^T; nothing is done when no entry of b b^T - I exceeds tol.  For rows that
 * nearly are: DSG_ENOCONV when an entry exceeds 0.1 (or is NaN), b is then undefined.
 * gram has p * p doubles. */
dsg_status dsg_orthonormalise_f64(double *restrict b, size_t p, size_t n, double tol,
                                  double *restrict gram);

/* Thin SVD of A (m, n) row-major, destroyed: A = U diag(s) V^T, s descending,
 * k = min(m, n), u (m, k), s (k), vt (k, n), row-major. */
size_t dsg_svd_workspace(size_t m, size_t n);
dsg_status dsg_svd_f64(double *restrict u, double *restrict s, double *restrict vt,
                       double *restrict a, size_t m, size_t n, void *work);

/* The library's own description, for `info`. */
const char *dsg_blas_config(void);

#endif
