/* displacement is (2, h, w), copied.  DSG_ESHAPE for an empty shape, DSG_ENONFINITE for
 * NaN or Inf. */
dsg_status DSG_NAME(dsg_warp_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const dsg_real *displacement);

/* g (2, h, w) = the gradient of <y, v> with respect to the displacement, for one image
 * x and one cotangent v, both of op's shape. */
void DSG_NAME(dsg_warp_displacement_gradient)(const DSG_NAME(dsg_op) *op,
                                              dsg_real *restrict g,
                                              const dsg_real *restrict x,
                                              const dsg_real *restrict v);

/* Whether op is a warp, for callers who hold an operator of unknown kind. */
bool DSG_NAME(dsg_is_warp)(const DSG_NAME(dsg_op) *op);
