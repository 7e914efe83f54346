/* (c, h, w) -> (c, ceil(h / factor), ceil(w / factor)).  DSG_EVALUE for factor 0,
 * DSG_ESHAPE for an empty shape. */
dsg_status DSG_NAME(dsg_resize_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                       size_t factor);
