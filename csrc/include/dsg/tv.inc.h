/* Declarations of tv.h for one precision. */

/* out (b, c, h, w) = prox(v).  dual (b, 2, c, h, w) is p, dx before dy: where the
 * iterations start from (0, or what an earlier call left) and where they end.  Its dx
 * in the last column and dy in the last row have no meaning and become 0.
 *
 * DSG_EVALUE for iterations = 0 and unless weight is > 0 and neither it nor its
 * reciprocal leaves the range of dsg_real; DSG_ESHAPE for sizes of 0 or too large.
 * Images, and channels where not coupled, in threads. */
dsg_status DSG_NAME(dsg_tv_prox)(dsg_real *restrict out, const dsg_real *restrict v,
                                 dsg_real *restrict dual, size_t b, dsg_shape shape,
                                 const dsg_tv_options *options);

/* out (b) = TV of every image, in double.  DSG_ESHAPE as above. */
dsg_status DSG_NAME(dsg_tv_norm)(double *restrict out, const dsg_real *restrict x,
                                 size_t b, dsg_shape shape, bool coupled);
