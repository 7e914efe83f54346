/* Sums shared by the operators and the projector.
 *
 * Sixteen lanes of double keep a sum vectorised and its rounding a function of the data
 * alone. */
#ifndef DSG_SUMS_H
#define DSG_SUMS_H

#include <stddef.h>

/* sum of (scale * x[i])^2, i = 0..n-1 */
double dsg_sum_of_squares_f32(const float *restrict x, size_t n, double scale);
double dsg_sum_of_squares_f64(const double *restrict x, size_t n, double scale);

#endif
