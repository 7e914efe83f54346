/* matrix is (out.c out.h out.w, in.c in.h in.w) row-major and copied.  The data step
 * has a closed form when the shorter side is at most 2048.  DSG_ESHAPE for an empty
 * shape or a side above INT_MAX, DSG_ENONFINITE for NaN or Inf. */
dsg_status DSG_NAME(dsg_matrix_create)(DSG_NAME(dsg_op) **op, dsg_shape in,
                                       dsg_shape out, const double *matrix);
