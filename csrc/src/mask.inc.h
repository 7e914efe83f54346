/* The mask operator for one precision.  Masked entries are selected away, not
 * multiplied by 0: a NaN behind the mask does not come through. */

typedef struct DSG_NAME(mask) {
    DSG_NAME(dsg_op) op;
    size_t plane;         /* h * w */
    size_t stride;        /* from a channel's mask to the next: plane, 0 when shared */
    unsigned char *bytes; /* 1 = observed */
} DSG_NAME(mask);

/* out = m ? x : 0 */
DSG_CLONES static void DSG_NAME(mask_select)(dsg_real *restrict out,
                                             const dsg_real *restrict x,
                                             const unsigned char *restrict m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real value = x[i];
        out[i] = m[i] ? value : 0;
    }
}

/* r = (m ? x : 0) - y */
DSG_CLONES static void DSG_NAME(mask_residual)(dsg_real *restrict r,
                                               const dsg_real *restrict x,
                                               const dsg_real *restrict y,
                                               const unsigned char *restrict m,
                                               size_t n)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real value = x[i];
        r[i] = (m[i] ? value : 0) - y[i];
    }
}

static void DSG_NAME(mask_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                   const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(mask) *m = (const DSG_NAME(mask) *)op;
    (void)ws;
    for (size_t c = 0; c < op->in.c; c++) {
        DSG_NAME(mask_select)
        (y + c * m->plane, x + c * m->plane, m->bytes + c * m->stride, m->plane);
    }
}

static void DSG_NAME(mask_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                               const dsg_real *restrict x, const dsg_real *restrict v,
                               void *ws)
{
    (void)x;
    DSG_NAME(mask_forward)(op, g, v, ws);
}

/* Block by block, so that x, y and g pass through the caches once. */
static double DSG_NAME(mask_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                               dsg_real *restrict g,
                                               const dsg_real *restrict x,
                                               const dsg_real *restrict y, void *ws)
{
    enum { BLOCK = 1024 };
    const DSG_NAME(mask) *m = (const DSG_NAME(mask) *)op;
    dsg_real r[BLOCK];
    double sum = 0.0;
    (void)ws;
    for (size_t c = 0; c < op->in.c; c++) {
        const unsigned char *bytes = m->bytes + c * m->stride;
        for (size_t at = 0; at < m->plane; at += BLOCK) {
            size_t n = m->plane - at < BLOCK ? m->plane - at : BLOCK;
            DSG_NAME(mask_residual)(r, x + at, y + at, bytes + at, n);
            sum += DSG_NAME(dsg_sum_of_squares)(r, n, 1.0);
            DSG_NAME(mask_select)(g + at, r, bytes + at, n);
        }
        x += m->plane;
        y += m->plane;
        g += m->plane;
    }
    return sum;
}

/* ---- data step ---- */

/* x = m ? y_share y + v_share v : v */
DSG_CLONES static void DSG_NAME(mask_mix)(dsg_real *restrict x,
                                          const dsg_real *restrict v,
                                          const dsg_real *restrict y,
                                          const unsigned char *restrict m,
                                          dsg_real y_share, dsg_real v_share, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real kept = v[i], mixed = y_share * y[i] + v_share * kept;
        x[i] = m[i] ? mixed : kept;
    }
}

static void DSG_NAME(mask_prox)(const DSG_NAME(dsg_data_step) *step,
                                dsg_real *restrict x, const dsg_real *restrict v,
                                const dsg_real *restrict y, double rho, void *ws)
{
    const DSG_NAME(mask) *m = (const DSG_NAME(mask) *)step->op;
    dsg_real y_share = (dsg_real)(1.0 / (1.0 + rho));
    dsg_real v_share = (dsg_real)(rho / (1.0 + rho));
    (void)ws;
    for (size_t c = 0; c < m->op.in.c; c++) {
        size_t at = c * m->plane;
        DSG_NAME(mask_mix)
        (x + at, v + at, y + at, m->bytes + c * m->stride, y_share, v_share, m->plane);
    }
}

/* All singular values are 1 or 0. */
static void DSG_NAME(mask_pinv)(const DSG_NAME(dsg_data_step) *step,
                                dsg_real *restrict x, const dsg_real *restrict y,
                                double cutoff, void *ws)
{
    if (cutoff < 1.0)
        DSG_NAME(mask_forward)(step->op, x, y, ws);
    else
        memset(x, 0, dsg_shape_size(step->op->in) * sizeof *x);
}

static void DSG_NAME(mask_step_destroy)(DSG_NAME(dsg_data_step) *step)
{
    dsg_free(step);
}

static const DSG_NAME(dsg_data_step_class) DSG_NAME(mask_step_class) = {
    .prox = DSG_NAME(mask_prox),
    .pinv = DSG_NAME(mask_pinv),
    .destroy = DSG_NAME(mask_step_destroy),
};

static dsg_status DSG_NAME(mask_data_step)(const DSG_NAME(dsg_op) *op,
                                           DSG_NAME(dsg_data_step) **step)
{
    const DSG_NAME(mask) *m = (const DSG_NAME(mask) *)op;
    size_t bytes = m->stride ? dsg_shape_size(op->in) : m->plane;
    DSG_NAME(dsg_data_step) *s = dsg_calloc(1, sizeof *s);
    if (!s)
        return DSG_ENOMEM;
    s->class = &DSG_NAME(mask_step_class);
    s->op = op;
    s->norm = memchr(m->bytes, 1, bytes) ? 1.0 : 0.0;
    *step = s;
    return DSG_OK;
}

/* ---- set-up ---- */

static void DSG_NAME(mask_destroy)(DSG_NAME(dsg_op) *op)
{
    DSG_NAME(mask) *m = (DSG_NAME(mask) *)op;
    dsg_free(m->bytes);
    dsg_free(m);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(mask_class) = {
    .linear = true,
    .forward = DSG_NAME(mask_forward),
    .vjp = DSG_NAME(mask_vjp),
    .residual_gradient = DSG_NAME(mask_residual_gradient),
    .data_step = DSG_NAME(mask_data_step),
    .destroy = DSG_NAME(mask_destroy),
};

dsg_status DSG_NAME(dsg_mask_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const unsigned char *mask, size_t channels)
{
    if (!dsg_shape_valid(shape, sizeof(dsg_real)))
        return DSG_ESHAPE;
    if (channels != 1 && channels != shape.c)
        return DSG_ESHAPE;
    size_t plane = shape.h * shape.w;
    for (size_t i = 0; i < channels * plane; i++)
        if (mask[i] > 1)
            return DSG_EVALUE;

    DSG_NAME(mask) *m = dsg_calloc(1, sizeof *m);
    if (!m)
        return DSG_ENOMEM;
    m->bytes = dsg_alloc(channels * plane, 1);
    if (!m->bytes) {
        dsg_free(m);
        return DSG_ENOMEM;
    }
    memcpy(m->bytes, mask, channels * plane);
    m->op.class = &DSG_NAME(mask_class);
    m->op.in = m->op.out = shape;
    m->plane = plane;
    m->stride = channels == 1 ? 0 : plane;
    *op = &m->op;
    return DSG_OK;
}
