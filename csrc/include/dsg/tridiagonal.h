/* Eigenvalues and some eigenvectors of a symmetric tridiagonal matrix T, where LAPACK's
 * routines for the first are slow, working on one at a time, and those for the second
 * find all or none.
 *
 * Values: with the leading minors f_i of T - x I there are as many eigenvalues below x
 * as changes of sign in f_0, f_1, ..., f_n.  Counting separates them; Laguerre's
 * iteration on f_n rises from below to the next one.
 *
 * Vectors: with T - w I = L D L^T from the top and U D' U^T from the bottom, the two
 * meet in gamma_k = D_k + D'_k - (d_k - w); at the k of smallest |gamma_k| the vector
 * with z_k = 1 solves (T - w I) z = gamma_k e_k, and its other entries follow outward
 * by multiplication alone (Parlett, Dhillon, Linear Algebra Appl. 267, 1997).  Each
 * vector has a residual of a few eps ||T||, whatever its neighbours; two of them are
 * orthogonal only as far as their eigenvalues differ, so a caller orthonormalises the
 * set (lapack.h) and takes another method where that fails. */
#ifndef DSG_TRIDIAGONAL_H
#define DSG_TRIDIAGONAL_H

#include <stdbool.h>
#include <stddef.h>

/* w (n) = eigenvalues of T, ascending up to rounding, to a few eps ||T||.  False when
 * some lie too close together for this method (dsterf in lapack.h then finds them).
 * work has dsg_tridiagonal_values_workspace(n) bytes. */
size_t dsg_tridiagonal_values_workspace(size_t n);
bool dsg_tridiagonal_values(double *restrict w, const double *restrict d,
                            const double *restrict e, size_t n, void *work);

/* Row j of z (p, n) = unit eigenvector for w[j]; T has diagonal d (n) and off-diagonal
 * e (n - 1).  work has dsg_tridiagonal_vectors_workspace(n) bytes, 64-byte aligned.
 * For eigenvalues that coincide rows may coincide or hold NaN. */
size_t dsg_tridiagonal_vectors_workspace(size_t n);
void dsg_tridiagonal_vectors(double *restrict z, const double *restrict d,
                             const double *restrict e, const double *restrict w,
                             size_t p, size_t n, void *work);

#endif
