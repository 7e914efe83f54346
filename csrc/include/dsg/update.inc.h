/* Declarations of update.h for one precision.  All: DSG_EVALUE for an option that is
 * out of range or not finite, DSG_ESHAPE for images above DSG_NOISE_MOST with `noise`;
 * x is untouched then.  Images in threads. */

/* code, gradient (b, n) with scale (b): or NULL. */
dsg_status DSG_NAME(dsg_ddpm_step)(dsg_real *restrict x, const dsg_real *restrict x0,
                                   const dsg_real *restrict code,
                                   const dsg_real *restrict gradient,
                                   const double *restrict scale, size_t b, size_t n,
                                   const dsg_noise *noise,
                                   const dsg_real *restrict recorded,
                                   const dsg_ddpm_options *options);

dsg_status DSG_NAME(dsg_ddim_step)(dsg_real *restrict x, const dsg_real *restrict x0,
                                   size_t b, size_t n, const dsg_noise *noise,
                                   const dsg_real *restrict recorded,
                                   const dsg_ddim_options *options);

dsg_status DSG_NAME(dsg_renoise)(dsg_real *restrict x, size_t b, size_t n, double scale,
                                 double sigma, const dsg_noise *noise,
                                 const dsg_real *restrict recorded);

dsg_status DSG_NAME(dsg_ald_step)(dsg_real *restrict x,
                                  const dsg_real *restrict denoised,
                                  const dsg_real *restrict gradient, size_t b, size_t n,
                                  const dsg_noise *noise,
                                  const dsg_real *restrict recorded,
                                  const dsg_ald_options *options);

/* m, v (b, n) in place too; 0 before the first step. */
dsg_status DSG_NAME(dsg_adam_step)(dsg_real *restrict x, dsg_real *restrict m,
                                   dsg_real *restrict v,
                                   const dsg_real *restrict gradient, size_t b,
                                   size_t n, const dsg_adam_options *options);
