/* x is seen as (channels, h, w) and y as (channels, p, q), whatever op's own shapes
 * are: channels * h * w must be the size of op->in, channels * p * q that of op->out,
 * else DSG_ESHAPE.  An operator on images passes (in.c, out.h, in.h, out.w, in.w, R,
 * T), a dense (m, n) matrix on flattened ones (1, m, n, 1, 1, M, NULL).
 *
 * r is (p, h) and t (q, w), row-major; both are only read here.  NULL stands for the
 * identity (then p = h or q = w, else DSG_ESHAPE) and costs nothing later.  r and t are
 * taken as the exact factors of op, whose own weights may differ by rounding.
 *
 * DSG_OK with *step NULL, as data_step of the operator table returns it, where a factor
 * is too large (DSG_SEPARABLE_MOST) or an image for BLAS (INT_MAX entries).
 * DSG_ENONFINITE for NaN or infinity in r or t, DSG_ENOCONV when LAPACK says so,
 * DSG_ENOMEM.  op must outlive the step. */
dsg_status DSG_NAME(dsg_separable_create)(DSG_NAME(dsg_data_step) **step,
                                          const DSG_NAME(dsg_op) *op, size_t channels,
                                          size_t p, size_t h, size_t q, size_t w,
                                          const double *r, const double *t);
