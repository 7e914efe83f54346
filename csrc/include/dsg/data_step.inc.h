/* Declarations of data_step.h for one precision. */

/* The table a closed form fills in.  Functions work on one image. */
typedef struct DSG_NAME(dsg_data_step_class) {
    void (*prox)(const DSG_NAME(dsg_data_step) *step, dsg_real *restrict x,
                 const dsg_real *restrict v, const dsg_real *restrict y, double rho,
                 void *ws);
    void (*pinv)(const DSG_NAME(dsg_data_step) *step, dsg_real *restrict x,
                 const dsg_real *restrict y, double cutoff, void *ws);
    /* Frees the step itself too; never called with NULL. */
    void (*destroy)(DSG_NAME(dsg_data_step) *step);
} DSG_NAME(dsg_data_step_class);

/* The head every closed form begins with. */
struct DSG_NAME(dsg_data_step) {
    const DSG_NAME(dsg_data_step_class) *class; /* NULL: conjugate gradients */
    const DSG_NAME(dsg_op) *op;
    size_t workspace;
    double norm; /* of the operator; of a closed form only */
};

/* op must outlive the step.  DSG_EVALUE for an operator that is not linear. */
dsg_status DSG_NAME(dsg_data_step_create)(DSG_NAME(dsg_data_step) **step,
                                          const DSG_NAME(dsg_op) *op);

/* A batch of b images in threads.  info has b entries, may be NULL.  DSG_EVALUE for
 * rho, tolerance, cutoff not finite or not > 0 (a cutoff may be 0 for a closed form)
 * or no iterations; an image that does not reach the tolerance is no failure: see
 * info. */
dsg_status DSG_NAME(dsg_data_step_prox_batch)(const DSG_NAME(dsg_data_step) *step,
                                              dsg_real *x, const dsg_real *v,
                                              const dsg_real *y, double rho,
                                              const dsg_cg_options *options,
                                              dsg_cg_info *info, size_t b);
dsg_status DSG_NAME(dsg_data_step_pinv_batch)(const DSG_NAME(dsg_data_step) *step,
                                              dsg_real *x, const dsg_real *y,
                                              double cutoff,
                                              const dsg_cg_options *options,
                                              dsg_cg_info *info, size_t b);
/* DSG_ENOCONV when the iteration does not settle. */
dsg_status DSG_NAME(dsg_data_step_norm)(const DSG_NAME(dsg_data_step) *step,
                                        double *norm);

/* Accepts NULL. */
void DSG_NAME(dsg_data_step_destroy)(DSG_NAME(dsg_data_step) *step);
