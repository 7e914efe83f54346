/* Declarations of blur.h for one precision. */

/* kernel is (kh, kw) row-major.  DSG_ESHAPE for an empty shape, a centre outside the
 * kernel, a growth of more than the kernel's side, or under `reflect` a pad not smaller
 * than the image, where the pads are what the whole kernel asks for, entries of 0
 * included; DSG_EVALUE for an unknown border or form, or a kernel that is not separable
 * where that form is asked for; DSG_ENONFINITE for a kernel with NaN or Inf;
 * DSG_ENOMEM. */
dsg_status DSG_NAME(dsg_blur_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const double *kernel,
                                     const dsg_blur_geometry *geometry,
                                     dsg_blur_form form);

/* The form set-up chose. */
dsg_blur_form DSG_NAME(dsg_blur_get_form)(const DSG_NAME(dsg_op) *op);

/* gradient (kh, kw) = the gradient of <A(x), v> with respect to the kernel, summed over
 * the channels of one image x (c, h, w) and v (c, h + grow_h, w + grow_w).  Direct sums
 * or FFTs, whichever is expected to be faster.  Allocates its own workspace.  Errors of
 * create that concern shape and geometry, and DSG_ENOMEM. */
dsg_status DSG_NAME(dsg_blur_kernel_gradient)(dsg_real *restrict gradient,
                                              const dsg_real *restrict x,
                                              const dsg_real *restrict v,
                                              dsg_shape shape,
                                              const dsg_blur_geometry *geometry);
