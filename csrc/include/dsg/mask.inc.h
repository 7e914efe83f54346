/* mask has `channels` planes of h * w bytes, channels = 1 (shared) or shape.c.
 * DSG_EVALUE for a byte other than 0 and 1, DSG_ESHAPE for other channel counts or an
 * empty shape. */
dsg_status DSG_NAME(dsg_mask_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const unsigned char *mask, size_t channels);
