/* Declarations of sampler.h for one precision. */

/* out (b, n) = the draw noise->draw of every batch item.  DSG_ESHAPE for n above
 * DSG_NOISE_MOST. */
dsg_status DSG_NAME(dsg_normal_batch)(dsg_real *out, size_t b, size_t n,
                                      const dsg_noise *noise);

/* x (n) in place.  DSG_EVALUE unless sigma > 0 and sigma_next >= 0, both finite. */
dsg_status DSG_NAME(dsg_euler_step)(dsg_real *restrict x,
                                    const dsg_real *restrict denoised, size_t n,
                                    double sigma, double sigma_next);

/* x (b, in) in place, x0hat (b, in), y (b, out).  projector is NULL or prepared for b
 * images.  recorded is NULL, or (steps, b, in) normals to use in place of `noise`.
 * DSG_EVALUE for options out of range, steps that would carry the draw past UINT32_MAX
 * among them, and when neither noise nor recorded is given for b > 0; DSG_ESHAPE for a
 * projector of other sizes and for images above DSG_NOISE_MOST without recorded;
 * DSG_ENOTREADY for a projector that is not prepared.
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

/* The same for HMC.  velocity (b, in) in place too, drawn by the caller before the
 * first step; momentum in 0..1. */
dsg_status DSG_NAME(dsg_hmc)(dsg_real *x, dsg_real *velocity, double *sqnorm,
                             const dsg_real *x0hat, const dsg_real *y, size_t b,
                             const DSG_NAME(dsg_op) *op,
                             const DSG_NAME(dsg_projector) *projector,
                             const dsg_noise *noise, const dsg_real *recorded,
                             const dsg_langevin_options *options, double momentum);

/* The same for Metropolis-Hastings, where sqnorm is that of the last x and accepted (b)
 * counts the proposals taken.  A step takes two draws, normals and U, so that step k
 * has numbers noise->draw + 2 k and + 2 k + 1; or normals and U come from recorded and
 * uniforms (steps, b), which are both given or both NULL, else DSG_EVALUE.  A proposal
 * that is not finite is not taken. */
dsg_status DSG_NAME(dsg_mh)(dsg_real *x, double *sqnorm, double *accepted,
                            const dsg_real *x0hat, const dsg_real *y, size_t b,
                            const DSG_NAME(dsg_op) *op, const dsg_noise *noise,
                            const dsg_real *recorded, const double *uniforms,
                            const dsg_langevin_options *options);
