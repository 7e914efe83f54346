/* DSG_ESHAPE for an empty shape, DSG_EVALUE for an unknown kind, for a not finite and
 * > 0, and where a is so far from 1 that the precision cannot hold the line. */
dsg_status DSG_NAME(dsg_pointwise_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                          dsg_pointwise_kind kind, double a);
