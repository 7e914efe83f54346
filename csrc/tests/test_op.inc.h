/* Calls through the table, with an operator that has nothing but what it must have:
 * y[i] = x[i] x[i + 1], one value fewer than x.  It writes all of its workspace. */

enum { DSG_NAME(LENGTH) = 11 };

static void DSG_NAME(spoil)(const DSG_NAME(dsg_op) *op, void *ws)
{
    if (op->workspace)
        memset(ws, 0xff, op->workspace);
}

static void DSG_NAME(product_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                      const dsg_real *restrict x, void *ws)
{
    DSG_NAME(spoil)(op, ws);
    for (size_t i = 0; i < op->out.w; i++)
        y[i] = x[i] * x[i + 1];
}

static void DSG_NAME(product_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                  const dsg_real *restrict x,
                                  const dsg_real *restrict v, void *ws)
{
    DSG_NAME(spoil)(op, ws);
    g[0] = 0;
    for (size_t i = 0; i < op->out.w; i++) {
        g[i] += v[i] * x[i + 1];
        g[i + 1] = v[i] * x[i];
    }
}

static void DSG_NAME(product_jvp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict t,
                                  const dsg_real *restrict x,
                                  const dsg_real *restrict w, void *ws)
{
    DSG_NAME(spoil)(op, ws);
    for (size_t i = 0; i < op->out.w; i++)
        t[i] = x[i] * w[i + 1] + w[i] * x[i + 1];
}

static void DSG_NAME(product_curvature)(const DSG_NAME(dsg_op) *op,
                                        dsg_real *restrict h,
                                        const dsg_real *restrict x,
                                        const dsg_real *restrict v,
                                        const dsg_real *restrict w, void *ws)
{
    (void)x;
    DSG_NAME(product_vjp)(op, h, w, v, ws); /* the vjp is linear in x */
}

static void DSG_NAME(product_destroy)(DSG_NAME(dsg_op) *op)
{
    op->workspace = 0;
}

static const DSG_NAME(dsg_op_class) DSG_NAME(product_class) = {
    .linear = false,
    .forward = DSG_NAME(product_forward),
    .vjp = DSG_NAME(product_vjp),
    .jvp = DSG_NAME(product_jvp),
    .curvature = DSG_NAME(product_curvature),
    .destroy = DSG_NAME(product_destroy),
};

static void DSG_NAME(test_op_all)(void)
{
    for (size_t bytes = 0; bytes <= 130; bytes += 65) {
        DSG_NAME(dsg_op) op = {.class = &DSG_NAME(product_class),
                               .in = {.c = 1, .h = 1, .w = DSG_NAME(LENGTH)},
                               .out = {.c = 1, .h = 1, .w = DSG_NAME(LENGTH) - 1},
                               .workspace = bytes};
        /* the residual lies behind, aligned */
        CHECK(DSG_NAME(dsg_op_workspace)(&op) ==
              (bytes + 63) / 64 * 64 + (DSG_NAME(LENGTH) - 1) * sizeof(dsg_real));
        /* two products and a sum of values in [-1, 1] */
        DSG_NAME(check_operator)(&op, 4 * DSG_NAME(epsilon)(), bytes);
        DSG_NAME(dsg_op_destroy)(&op);
        CHECK(op.workspace == 0);
    }
    DSG_NAME(dsg_op_destroy)(NULL);
}
