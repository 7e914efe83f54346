/* x and ref are (b, c, h, w); out has b entries.  Images in threads. */
dsg_status DSG_NAME(dsg_psnr)(double *out, const dsg_real *x, const dsg_real *ref,
                              size_t b, dsg_shape shape, double range, double floor);
dsg_status DSG_NAME(dsg_nmse)(double *out, const dsg_real *x, const dsg_real *ref,
                              size_t b, dsg_shape shape);
/* DSG_ESHAPE for images smaller than the window. */
dsg_status DSG_NAME(dsg_ssim)(double *out, const dsg_real *x, const dsg_real *ref,
                              size_t b, dsg_shape shape, double range,
                              dsg_ssim_window window);
