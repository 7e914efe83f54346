/* kernel is (kh, kw) row-major.  DSG_ESHAPE for an empty shape or a pad not smaller
 * than the image, DSG_ENONFINITE for a kernel with NaN or Inf. */
dsg_status DSG_NAME(dsg_blur_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const double *kernel, size_t kh, size_t kw,
                                     dsg_blur_form form);

/* The form set-up chose. */
dsg_blur_form DSG_NAME(dsg_blur_get_form)(const DSG_NAME(dsg_op) *op);
