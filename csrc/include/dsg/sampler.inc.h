/* Declarations of sampler.h for one precision. */

/* out (b, n) = the draw noise->draw of every batch item. */
dsg_status DSG_NAME(dsg_normal_batch)(dsg_real *out, size_t b, size_t n,
                                      const dsg_noise *noise);

/* x (n) in place; sigma > 0, 0 <= sigma_next. */
void DSG_NAME(dsg_euler_step)(dsg_real *restrict x, const dsg_real *restrict denoised,
                              size_t n, double sigma, double sigma_next);

/* x (b, in) in place, x0hat (b, in), y (b, out).  projector is NULL or prepared for b
 * images.  recorded is NULL, or (steps, b, in) normals to use in place of `noise`.
 *
 * sqnorm (b) receives ||A(x) - y||^2 as seen by the last step, before its update.  An
 * image whose residual or state stops being finite is left where it is, with NaN as its
 * sqnorm; the others go on. */
dsg_status DSG_NAME(dsg_langevin)(dsg_real *x, double *sqnorm, const dsg_real *x0hat,
                                  const dsg_real *y, size_t b,
                                  const DSG_NAME(dsg_op) *op,
                                  const DSG_NAME(dsg_projector) *projector,
                                  const dsg_noise *noise, const dsg_real *recorded,
                                  const dsg_langevin_options *options);
