/* Both must outlive the result.  DSG_ESHAPE unless outer->in is inner->out,
 * and for compositions nested more than 10000 deep. */
dsg_status DSG_NAME(dsg_compose_create)(DSG_NAME(dsg_op) **op,
                                        const DSG_NAME(dsg_op) *outer,
                                        const DSG_NAME(dsg_op) *inner);
