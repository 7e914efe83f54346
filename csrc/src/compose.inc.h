/* Two operators in a row, for one precision.
 *
 * Workspace: up to three arrays of the size in the middle, one of the size of x, and
 * behind them room for whichever operator is at work. */

typedef struct DSG_NAME(compose) {
    DSG_NAME(dsg_op) op;
    const DSG_NAME(dsg_op) *outer, *inner;
    size_t middle;       /* from one array to the next, in elements */
    size_t extra, parts; /* where these begin, in bytes */
    size_t depth;        /* of compositions inside compositions */
} DSG_NAME(compose);

/* The workspace, cut up. */
typedef struct DSG_NAME(compose_buffers) {
    dsg_real *z;     /* inner(x) */
    dsg_real *p, *q; /* what passes between both */
    dsg_real *extra; /* a second gradient */
    void *parts;     /* workspace of outer or inner */
} DSG_NAME(compose_buffers);

static DSG_NAME(compose_buffers) DSG_NAME(cut)(const DSG_NAME(compose) *k, void *ws)
{
    dsg_real *z = ws;
    return (DSG_NAME(compose_buffers)){
        .z = z,
        .p = z + k->middle,
        .q = z + 2 * k->middle,
        .extra = (dsg_real *)((char *)ws + k->extra),
        .parts = (char *)ws + k->parts,
    };
}

static void DSG_NAME(compose_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                      const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(compose) *k = (const DSG_NAME(compose) *)op;
    DSG_NAME(compose_buffers) t = DSG_NAME(cut)(k, ws);
    DSG_NAME(dsg_op_forward)(k->inner, t.z, x, t.parts);
    DSG_NAME(dsg_op_forward)(k->outer, y, t.z, t.parts);
}

/* What the outer operator's derivative is taken at; not computed where it has none. */
static const dsg_real *DSG_NAME(place)(const DSG_NAME(compose) *k,
                                       const DSG_NAME(compose_buffers) *t,
                                       const dsg_real *x)
{
    if (k->outer->class->linear)
        return NULL;
    DSG_NAME(dsg_op_forward)(k->inner, t->z, x, t->parts);
    return t->z;
}

static void DSG_NAME(compose_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                  const dsg_real *restrict x,
                                  const dsg_real *restrict v, void *ws)
{
    const DSG_NAME(compose) *k = (const DSG_NAME(compose) *)op;
    DSG_NAME(compose_buffers) t = DSG_NAME(cut)(k, ws);
    const dsg_real *z = DSG_NAME(place)(k, &t, x);
    DSG_NAME(dsg_op_vjp)(k->outer, t.p, z, v, t.parts);
    DSG_NAME(dsg_op_vjp)(k->inner, g, x, t.p, t.parts);
}

/* The outer operator's own, so that what it fuses stays fused. */
static double DSG_NAME(compose_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                                  dsg_real *restrict g,
                                                  const dsg_real *restrict x,
                                                  const dsg_real *restrict y, void *ws)
{
    const DSG_NAME(compose) *k = (const DSG_NAME(compose) *)op;
    DSG_NAME(compose_buffers) t = DSG_NAME(cut)(k, ws);
    DSG_NAME(dsg_op_forward)(k->inner, t.z, x, t.parts);
    double sqnorm = DSG_NAME(dsg_op_residual_gradient)(k->outer, t.p, t.z, y, t.parts);
    DSG_NAME(dsg_op_vjp)(k->inner, g, x, t.p, t.parts);
    return sqnorm;
}

static void DSG_NAME(compose_jvp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                  const dsg_real *restrict x,
                                  const dsg_real *restrict w, void *ws)
{
    const DSG_NAME(compose) *k = (const DSG_NAME(compose) *)op;
    DSG_NAME(compose_buffers) t = DSG_NAME(cut)(k, ws);
    const dsg_real *z = DSG_NAME(place)(k, &t, x);
    DSG_NAME(dsg_op_jvp)(k->inner, t.p, x, w, t.parts);
    DSG_NAME(dsg_op_jvp)(k->outer, y, z, t.p, t.parts);
}

/* J_inner^T curvature_outer(inner(x); v, J_inner w) + curvature_inner(x; J_outer^T v,
 * w), of which at least one term is not 0. */
static void DSG_NAME(compose_curvature)(const DSG_NAME(dsg_op) *op,
                                        dsg_real *restrict h,
                                        const dsg_real *restrict x,
                                        const dsg_real *restrict v,
                                        const dsg_real *restrict w, void *ws)
{
    const DSG_NAME(compose) *k = (const DSG_NAME(compose) *)op;
    DSG_NAME(compose_buffers) t = DSG_NAME(cut)(k, ws);
    const dsg_real *z = DSG_NAME(place)(k, &t, x);
    bool bends = !k->inner->class->linear;
    if (bends) {
        DSG_NAME(dsg_op_vjp)(k->outer, t.p, z, v, t.parts);
        DSG_NAME(dsg_op_curvature)(k->inner, z ? t.extra : h, x, t.p, w, t.parts);
    }
    if (!z)
        return;
    DSG_NAME(dsg_op_jvp)(k->inner, t.p, x, w, t.parts);
    DSG_NAME(dsg_op_curvature)(k->outer, t.q, z, v, t.p, t.parts);
    DSG_NAME(dsg_op_vjp)(k->inner, h, x, t.q, t.parts);
    if (bends)
        for (size_t i = 0, n = dsg_shape_size(op->in); i < n; i++)
            h[i] += t.extra[i];
}

static void DSG_NAME(compose_destroy)(DSG_NAME(dsg_op) *op)
{
    dsg_free(op);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(linear_class) = {
    .linear = true,
    .forward = DSG_NAME(compose_forward),
    .vjp = DSG_NAME(compose_vjp),
    .residual_gradient = DSG_NAME(compose_residual_gradient),
    .destroy = DSG_NAME(compose_destroy),
};

static const DSG_NAME(dsg_op_class) DSG_NAME(nonlinear_class) = {
    .linear = false,
    .forward = DSG_NAME(compose_forward),
    .vjp = DSG_NAME(compose_vjp),
    .residual_gradient = DSG_NAME(compose_residual_gradient),
    .jvp = DSG_NAME(compose_jvp),
    .curvature = DSG_NAME(compose_curvature),
    .destroy = DSG_NAME(compose_destroy),
};

/* False when it is too large.  The linear class needs z and p only, and extra is for
 * two operators that both bend. */
static bool DSG_NAME(size_workspace)(DSG_NAME(compose) *k)
{
    bool linear = k->op.class->linear;
    bool both = !k->outer->class->linear && !k->inner->class->linear;
    size_t middle = dsg_align_up(dsg_shape_size(k->inner->out) * sizeof(dsg_real));
    size_t extra = dsg_align_up(both ? dsg_shape_size(k->op.in) * sizeof(dsg_real) : 0);
    size_t a = DSG_NAME(dsg_op_workspace)(k->outer);
    size_t b = DSG_NAME(dsg_op_workspace)(k->inner);
    size_t parts = a > b ? a : b;
    if (middle > PTRDIFF_MAX / 8 || extra > PTRDIFF_MAX / 8 || parts > PTRDIFF_MAX / 8)
        return false;
    k->middle = middle / sizeof(dsg_real);
    k->extra = (linear ? 2 : 3) * middle;
    k->parts = k->extra + extra;
    k->op.workspace = k->parts + parts;
    return true;
}

/* How deep a call through the operator goes. */
static size_t DSG_NAME(depth_of)(const DSG_NAME(dsg_op) *op)
{
    bool composed =
        op->class == &DSG_NAME(linear_class) || op->class == &DSG_NAME(nonlinear_class);
    return composed ? ((const DSG_NAME(compose) *)op)->depth : 0;
}

dsg_status DSG_NAME(dsg_compose_create)(DSG_NAME(dsg_op) **op,
                                        const DSG_NAME(dsg_op) *outer,
                                        const DSG_NAME(dsg_op) *inner)
{
    if (outer->in.c != inner->out.c || outer->in.h != inner->out.h ||
        outer->in.w != inner->out.w)
        return DSG_ESHAPE;
    bool linear = outer->class->linear && inner->class->linear;
    DSG_NAME(compose) k = {
        .op = {.class = linear ? &DSG_NAME(linear_class) : &DSG_NAME(nonlinear_class),
               .in = inner->in,
               .out = outer->out},
        .outer = outer,
        .inner = inner,
    };
    size_t outer_depth = DSG_NAME(depth_of)(outer);
    size_t inner_depth = DSG_NAME(depth_of)(inner);
    k.depth = 1 + (outer_depth > inner_depth ? outer_depth : inner_depth);
    if (k.depth > DEEPEST)
        return DSG_ESHAPE;
    if (!DSG_NAME(size_workspace)(&k))
        return DSG_ESHAPE;
    DSG_NAME(compose) *made = dsg_alloc(1, sizeof *made);
    if (!made)
        return DSG_ENOMEM;
    *made = k;
    *op = &made->op;
    return DSG_OK;
}
