/* (c, h, w) -> (c, ceil(h / factor), ceil(w / factor)).  DSG_EVALUE for factor 0,
 * DSG_ESHAPE for an empty shape and for a factor above 16 max(h, w): an axis is then a
 * single output whose weights, factor times longer than the image, average it. */
dsg_status DSG_NAME(dsg_resize_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                       size_t factor);
