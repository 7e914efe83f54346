/* Calls through the table, and the batch in threads, for one precision. */

/* The residual lies behind the operator's own workspace. */
static size_t DSG_NAME(residual_offset)(const DSG_NAME(dsg_op) *op)
{
    return dsg_align_up(op->workspace);
}

size_t DSG_NAME(dsg_op_workspace)(const DSG_NAME(dsg_op) *op)
{
    if (op->class->residual_gradient)
        return op->workspace;
    return DSG_NAME(residual_offset)(op) + dsg_shape_size(op->out) * sizeof(dsg_real);
}

void DSG_NAME(dsg_op_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                              const dsg_real *restrict x, void *ws)
{
    op->class->forward(op, y, x, ws);
}

void DSG_NAME(dsg_op_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                          const dsg_real *restrict x, const dsg_real *restrict v,
                          void *ws)
{
    op->class->vjp(op, g, x, v, ws);
}

void DSG_NAME(dsg_op_jvp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict t,
                          const dsg_real *restrict x, const dsg_real *restrict w,
                          void *ws)
{
    if (op->class->linear)
        op->class->forward(op, t, w, ws);
    else
        op->class->jvp(op, t, x, w, ws);
}

void DSG_NAME(dsg_op_curvature)(const DSG_NAME(dsg_op) *op, dsg_real *restrict h,
                                const dsg_real *restrict x, const dsg_real *restrict v,
                                const dsg_real *restrict w, void *ws)
{
    if (op->class->linear)
        memset(h, 0, dsg_shape_size(op->in) * sizeof *h);
    else
        op->class->curvature(op, h, x, v, w, ws);
}

/* r -= y; returns the squared norm.  Sixteen double lanes keep the sum vectorised
 * and independent of everything but the length. */
DSG_CLONES static double DSG_NAME(subtract)(dsg_real *restrict r,
                                            const dsg_real *restrict y, size_t n)
{
    double lane[16] = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++) {
            r[i + k] -= y[i + k];
            lane[k] += (double)r[i + k] * r[i + k];
        }
    for (size_t k = 0; i < n; i++, k++) {
        r[i] -= y[i];
        lane[k] += (double)r[i] * r[i];
    }
    double sum = 0.0;
    for (size_t k = 0; k < 16; k++)
        sum += lane[k];
    return sum;
}

double DSG_NAME(dsg_op_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                          dsg_real *restrict g,
                                          const dsg_real *restrict x,
                                          const dsg_real *restrict y, void *ws)
{
    if (op->class->residual_gradient)
        return op->class->residual_gradient(op, g, x, y, ws);
    dsg_real *r = (dsg_real *)((char *)ws + DSG_NAME(residual_offset)(op));
    op->class->forward(op, r, x, ws);
    double sqnorm = DSG_NAME(subtract)(r, y, dsg_shape_size(op->out));
    op->class->vjp(op, g, x, r, ws);
    return sqnorm;
}

/* A batch of calls; which of the pointers are set depends on the work. */
typedef struct DSG_NAME(op_batch) {
    const DSG_NAME(dsg_op) *op;
    dsg_real *y, *g;
    double *sqnorm;
    const dsg_real *x, *v, *w;
} DSG_NAME(op_batch);

static dsg_status DSG_NAME(forward_item)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(op_batch) *k = arg;
    size_t n = dsg_shape_size(k->op->in), m = dsg_shape_size(k->op->out);
    DSG_NAME(dsg_op_forward)(k->op, k->y + i * m, k->x + i * n, ws);
    return DSG_OK;
}

static dsg_status DSG_NAME(vjp_item)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(op_batch) *k = arg;
    size_t n = dsg_shape_size(k->op->in), m = dsg_shape_size(k->op->out);
    const dsg_real *x = k->x ? k->x + i * n : NULL;
    DSG_NAME(dsg_op_vjp)(k->op, k->g + i * n, x, k->v + i * m, ws);
    return DSG_OK;
}

static dsg_status DSG_NAME(residual_gradient_item)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(op_batch) *k = arg;
    size_t n = dsg_shape_size(k->op->in), m = dsg_shape_size(k->op->out);
    k->sqnorm[i] = DSG_NAME(dsg_op_residual_gradient)(k->op, k->g + i * n, k->x + i * n,
                                                      k->v + i * m, ws);
    return DSG_OK;
}

static dsg_status DSG_NAME(jvp_item)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(op_batch) *k = arg;
    size_t n = dsg_shape_size(k->op->in), m = dsg_shape_size(k->op->out);
    const dsg_real *x = k->x ? k->x + i * n : NULL;
    DSG_NAME(dsg_op_jvp)(k->op, k->y + i * m, x, k->w + i * n, ws);
    return DSG_OK;
}

static dsg_status DSG_NAME(curvature_item)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(op_batch) *k = arg;
    size_t n = dsg_shape_size(k->op->in), m = dsg_shape_size(k->op->out);
    const dsg_real *x = k->x ? k->x + i * n : NULL;
    DSG_NAME(dsg_op_curvature)(k->op, k->g + i * n, x, k->v + i * m, k->w + i * n, ws);
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_op_forward_batch)(const DSG_NAME(dsg_op) *op, dsg_real *y,
                                          const dsg_real *x, size_t b)
{
    DSG_NAME(op_batch) k = {.op = op, .y = y, .x = x};
    return dsg_parallel_for(b, op->workspace, DSG_NAME(forward_item), &k);
}

dsg_status DSG_NAME(dsg_op_vjp_batch)(const DSG_NAME(dsg_op) *op, dsg_real *g,
                                      const dsg_real *x, const dsg_real *v, size_t b)
{
    if (b > 0 && !x && !op->class->linear)
        return DSG_EVALUE;
    DSG_NAME(op_batch) k = {.op = op, .g = g, .x = x, .v = v};
    return dsg_parallel_for(b, op->workspace, DSG_NAME(vjp_item), &k);
}

dsg_status DSG_NAME(dsg_op_residual_gradient_batch)(const DSG_NAME(dsg_op) *op,
                                                    dsg_real *g, double *sqnorm,
                                                    const dsg_real *x,
                                                    const dsg_real *y, size_t b)
{
    DSG_NAME(op_batch) k = {.op = op, .g = g, .sqnorm = sqnorm, .x = x, .v = y};
    return dsg_parallel_for(b, DSG_NAME(dsg_op_workspace)(op),
                            DSG_NAME(residual_gradient_item), &k);
}

dsg_status DSG_NAME(dsg_op_jvp_batch)(const DSG_NAME(dsg_op) *op, dsg_real *t,
                                      const dsg_real *x, const dsg_real *w, size_t b)
{
    if (b > 0 && !x && !op->class->linear)
        return DSG_EVALUE;
    DSG_NAME(op_batch) k = {.op = op, .y = t, .x = x, .w = w};
    return dsg_parallel_for(b, op->workspace, DSG_NAME(jvp_item), &k);
}

dsg_status DSG_NAME(dsg_op_curvature_batch)(const DSG_NAME(dsg_op) *op, dsg_real *h,
                                            const dsg_real *x, const dsg_real *v,
                                            const dsg_real *w, size_t b)
{
    if (b > 0 && !x && !op->class->linear)
        return DSG_EVALUE;
    DSG_NAME(op_batch) k = {.op = op, .g = h, .x = x, .v = v, .w = w};
    return dsg_parallel_for(b, op->workspace, DSG_NAME(curvature_item), &k);
}

void DSG_NAME(dsg_op_destroy)(DSG_NAME(dsg_op) *op)
{
    if (op)
        op->class->destroy(op);
}
