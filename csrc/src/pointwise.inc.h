/* Operators on single values for one precision. */

typedef struct DSG_NAME(pointwise) {
    DSG_NAME(dsg_op) op;
    dsg_real a; /* clip: the factor; encode, decode: the power */
    /* encode, decode: |u| below `straight` goes onto a line of this slope */
    dsg_real straight, slope;
} DSG_NAME(pointwise);

/* ---- clip; comparisons are false for NaN, which so comes through ---- */

DSG_CLONES static void DSG_NAME(clip_values)(dsg_real *restrict y,
                                             const dsg_real *restrict x, size_t n,
                                             dsg_real a)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real t = a * x[i];
        t = t < -1 ? -1 : t;
        y[i] = t > 1 ? 1 : t;
    }
}

DSG_CLONES static void DSG_NAME(clip_derivative)(dsg_real *restrict g,
                                                 const dsg_real *restrict x,
                                                 const dsg_real *restrict v, size_t n,
                                                 dsg_real a)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real inner = a * v[i];
        g[i] = FABS(a * x[i]) <= 1 ? inner : 0;
    }
}

/* Sixteen lanes of double, as in sums.h. */
DSG_CLONES static double DSG_NAME(clip_gradient)(dsg_real *restrict g,
                                                 const dsg_real *restrict x,
                                                 const dsg_real *restrict y, size_t n,
                                                 dsg_real a)
{
    double lane[16] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++) {
            dsg_real t = a * x[i + k], r;
            r = t < -1 ? -1 : t;
            r = r > 1 ? 1 : r;
            r -= y[i + k];
            lane[k] += (double)r * r;
            dsg_real inner = a * r;
            g[i + k] = FABS(t) <= 1 ? inner : 0;
        }
    for (size_t k = 0; i < n; i++, k++) {
        dsg_real t = a * x[i], r;
        r = t < -1 ? -1 : t;
        r = r > 1 ? 1 : r;
        r -= y[i];
        lane[k] += (double)r * r;
        g[i] = FABS(t) <= 1 ? a * r : 0;
    }
    for (size_t k = 0; k < 16; k++)
        sum += lane[k];
    return sum;
}

static void DSG_NAME(clip_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                   const dsg_real *restrict x, void *ws)
{
    (void)ws;
    DSG_NAME(clip_values)
    (y, x, dsg_shape_size(op->in), ((const DSG_NAME(pointwise) *)op)->a);
}

/* J is diagonal: vjp and jvp are the same. */
static void DSG_NAME(clip_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                               const dsg_real *restrict x, const dsg_real *restrict v,
                               void *ws)
{
    (void)ws;
    DSG_NAME(clip_derivative)
    (g, x, v, dsg_shape_size(op->in), ((const DSG_NAME(pointwise) *)op)->a);
}

static double DSG_NAME(clip_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                               dsg_real *restrict g,
                                               const dsg_real *restrict x,
                                               const dsg_real *restrict y, void *ws)
{
    (void)ws;
    return DSG_NAME(clip_gradient)(g, x, y, dsg_shape_size(op->in),
                                   ((const DSG_NAME(pointwise) *)op)->a);
}

static void DSG_NAME(clip_curvature)(const DSG_NAME(dsg_op) *op, dsg_real *restrict h,
                                     const dsg_real *restrict x,
                                     const dsg_real *restrict v,
                                     const dsg_real *restrict w, void *ws)
{
    (void)x, (void)v, (void)w, (void)ws;
    memset(h, 0, dsg_shape_size(op->in) * sizeof *h);
}

/* ---- powers: f(x) = 2 g(u) - 1, u = (x + 1) / 2, so f' = g' and f'' = g'' / 2 ---- */

/* g, g' and g'' at one place.  NaN takes the branch of the power, and stays. */
typedef struct DSG_NAME(jet) {
    dsg_real value, first, second;
} DSG_NAME(jet);

static inline DSG_NAME(jet) DSG_NAME(power)(const DSG_NAME(pointwise) *p, dsg_real x)
{
    dsg_real u = (x + 1) / 2, size = FABS(u);
    if (size < p->straight)
        return (DSG_NAME(jet)){.value = p->slope * u, .first = p->slope};
    dsg_real value = POW(size, p->a), first = p->a * (value / size);
    dsg_real second = (p->a - 1) * (first / size);
    return (DSG_NAME(jet)){
        .value = COPYSIGN(value, u), .first = first, .second = COPYSIGN(1, u) * second};
}

static void DSG_NAME(power_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                    const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(pointwise) *p = (const DSG_NAME(pointwise) *)op;
    (void)ws;
    for (size_t i = 0, n = dsg_shape_size(op->in); i < n; i++)
        y[i] = 2 * DSG_NAME(power)(p, x[i]).value - 1;
}

static void DSG_NAME(power_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                const dsg_real *restrict x, const dsg_real *restrict v,
                                void *ws)
{
    const DSG_NAME(pointwise) *p = (const DSG_NAME(pointwise) *)op;
    (void)ws;
    for (size_t i = 0, n = dsg_shape_size(op->in); i < n; i++)
        g[i] = DSG_NAME(power)(p, x[i]).first * v[i];
}

/* One power for both, and the residual is never stored. */
static double DSG_NAME(power_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                                dsg_real *restrict g,
                                                const dsg_real *restrict x,
                                                const dsg_real *restrict y, void *ws)
{
    const DSG_NAME(pointwise) *p = (const DSG_NAME(pointwise) *)op;
    double sum = 0.0;
    (void)ws;
    for (size_t i = 0, n = dsg_shape_size(op->in); i < n; i++) {
        DSG_NAME(jet) f = DSG_NAME(power)(p, x[i]);
        dsg_real forward = 2 * f.value - 1, r = forward - y[i];
        sum += (double)r * r;
        g[i] = f.first * r;
    }
    return sum;
}

static void DSG_NAME(power_curvature)(const DSG_NAME(dsg_op) *op, dsg_real *restrict h,
                                      const dsg_real *restrict x,
                                      const dsg_real *restrict v,
                                      const dsg_real *restrict w, void *ws)
{
    const DSG_NAME(pointwise) *p = (const DSG_NAME(pointwise) *)op;
    (void)ws;
    for (size_t i = 0, n = dsg_shape_size(op->in); i < n; i++)
        h[i] = DSG_NAME(power)(p, x[i]).second / 2 * v[i] * w[i];
}

/* ---- set-up ---- */

static void DSG_NAME(pointwise_destroy)(DSG_NAME(dsg_op) *op)
{
    dsg_free(op);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(clip_class) = {
    .linear = false,
    .forward = DSG_NAME(clip_forward),
    .vjp = DSG_NAME(clip_vjp),
    .residual_gradient = DSG_NAME(clip_residual_gradient),
    .jvp = DSG_NAME(clip_vjp),
    .curvature = DSG_NAME(clip_curvature),
    .destroy = DSG_NAME(pointwise_destroy),
};

static const DSG_NAME(dsg_op_class) DSG_NAME(power_class) = {
    .linear = false,
    .forward = DSG_NAME(power_forward),
    .vjp = DSG_NAME(power_vjp),
    .residual_gradient = DSG_NAME(power_residual_gradient),
    .jvp = DSG_NAME(power_vjp),
    .curvature = DSG_NAME(power_curvature),
    .destroy = DSG_NAME(pointwise_destroy),
};

dsg_status DSG_NAME(dsg_pointwise_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                          dsg_pointwise_kind kind, double a)
{
    if (!dsg_shape_valid(shape, sizeof(dsg_real)))
        return DSG_ESHAPE;
    if (!(a > 0.0) || !isfinite((dsg_real)a) || (dsg_real)a == 0)
        return DSG_EVALUE;

    DSG_NAME(pointwise) p = {.op = {.in = shape, .out = shape}, .a = (dsg_real)a};
    double line = pow(STRAIGHT, 1.0 / a); /* the response at STRAIGHT */
    switch (kind) {
    case DSG_POINTWISE_CLIP:
        p.op.class = &DSG_NAME(clip_class);
        break;
    case DSG_POINTWISE_ENCODE:
        p.op.class = &DSG_NAME(power_class);
        p.a = (dsg_real)(1.0 / a);
        p.straight = (dsg_real)STRAIGHT;
        p.slope = (dsg_real)(line / STRAIGHT);
        break;
    case DSG_POINTWISE_DECODE:
        p.op.class = &DSG_NAME(power_class);
        p.straight = (dsg_real)line;
        p.slope = (dsg_real)(STRAIGHT / line);
        break;
    default:
        return DSG_EVALUE;
    }
    if (kind != DSG_POINTWISE_CLIP &&
        (p.straight == 0 || p.slope == 0 || !isfinite(p.slope) || p.a == 0))
        return DSG_EVALUE;

    DSG_NAME(pointwise) *made = dsg_alloc(1, sizeof *made);
    if (!made)
        return DSG_ENOMEM;
    *made = p;
    *op = &made->op;
    return DSG_OK;
}
