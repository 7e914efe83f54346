/* DSG_ESHAPE for an empty shape or one too large, DSG_EVALUE for a scale or shift that
 * is not finite. */
dsg_status DSG_NAME(dsg_phase_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                      size_t pad, double scale, double shift);
