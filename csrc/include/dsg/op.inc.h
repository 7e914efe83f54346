/* Declarations of op.h for one precision. */

typedef struct DSG_NAME(dsg_op) DSG_NAME(dsg_op);
typedef struct DSG_NAME(dsg_data_step) DSG_NAME(dsg_data_step); /* data_step.h */

/* The table an operator fills in.  Functions work on one image. */
typedef struct DSG_NAME(dsg_op_class) {
    bool linear;

    /* y = A(x) */
    void (*forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                    const dsg_real *restrict x, void *ws);

    /* g = J(x)^T v.  For a linear operator, the adjoint: x is not read, may be NULL. */
    void (*vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                const dsg_real *restrict x, const dsg_real *restrict v, void *ws);

    /* g = J(x)^T (A(x) - y); returns ||A(x) - y||^2, summed in double.  NULL when the
     * operator has nothing better than forward, subtract, vjp. */
    double (*residual_gradient)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                const dsg_real *restrict x, const dsg_real *restrict y,
                                void *ws);

    /* t = J(x) w.  NULL for a linear operator, whose forward it is. */
    void (*jvp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict t,
                const dsg_real *restrict x, const dsg_real *restrict w, void *ws);

    /* h = the gradient of <J(x)^T v, w> with respect to x: what the second derivative
     * needs.  NULL for a linear operator, where it is 0. */
    void (*curvature)(const DSG_NAME(dsg_op) *op, dsg_real *restrict h,
                      const dsg_real *restrict x, const dsg_real *restrict v,
                      const dsg_real *restrict w, void *ws);

    /* Sets up the exact data step in closed form; NULL where there is none. */
    dsg_status (*data_step)(const DSG_NAME(dsg_op) *op, DSG_NAME(dsg_data_step) **step);

    /* Frees the operator itself too; never called with NULL. */
    void (*destroy)(DSG_NAME(dsg_op) *op);
} DSG_NAME(dsg_op_class);

/* The head every operator begins with. */
struct DSG_NAME(dsg_op) {
    const DSG_NAME(dsg_op_class) *class;
    dsg_shape in, out;
    size_t workspace; /* bytes its functions need, without the residual below */
};

/* Bytes of workspace for any call below. */
size_t DSG_NAME(dsg_op_workspace)(const DSG_NAME(dsg_op) *op);

/* One image; see the table. */
void DSG_NAME(dsg_op_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                              const dsg_real *restrict x, void *ws);
void DSG_NAME(dsg_op_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                          const dsg_real *restrict x, const dsg_real *restrict v,
                          void *ws);
double DSG_NAME(dsg_op_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                          dsg_real *restrict g,
                                          const dsg_real *restrict x,
                                          const dsg_real *restrict y, void *ws);

/* For a linear operator jvp does not read x (may be NULL) and curvature writes 0. */
void DSG_NAME(dsg_op_jvp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict t,
                          const dsg_real *restrict x, const dsg_real *restrict w,
                          void *ws);
void DSG_NAME(dsg_op_curvature)(const DSG_NAME(dsg_op) *op, dsg_real *restrict h,
                                const dsg_real *restrict x, const dsg_real *restrict v,
                                const dsg_real *restrict w, void *ws);

/* The same over a batch of b images, in threads.  sqnorm has b entries.  Where x is
 * missing but needed: DSG_EVALUE. */
dsg_status DSG_NAME(dsg_op_forward_batch)(const DSG_NAME(dsg_op) *op, dsg_real *y,
                                          const dsg_real *x, size_t b);
dsg_status DSG_NAME(dsg_op_vjp_batch)(const DSG_NAME(dsg_op) *op, dsg_real *g,
                                      const dsg_real *x, const dsg_real *v, size_t b);
dsg_status DSG_NAME(dsg_op_residual_gradient_batch)(const DSG_NAME(dsg_op) *op,
                                                    dsg_real *g, double *sqnorm,
                                                    const dsg_real *x,
                                                    const dsg_real *y, size_t b);

dsg_status DSG_NAME(dsg_op_jvp_batch)(const DSG_NAME(dsg_op) *op, dsg_real *t,
                                      const dsg_real *x, const dsg_real *w, size_t b);
dsg_status DSG_NAME(dsg_op_curvature_batch)(const DSG_NAME(dsg_op) *op, dsg_real *h,
                                            const dsg_real *x, const dsg_real *v,
                                            const dsg_real *w, size_t b);

/* Accepts NULL. */
void DSG_NAME(dsg_op_destroy)(DSG_NAME(dsg_op) *op);
