/* The explicit matrix for one precision. */

typedef struct DSG_NAME(matrix) {
    DSG_NAME(dsg_op) op;
    size_t m, n;
    dsg_real *entries; /* (m, n) */
} DSG_NAME(matrix);

static void DSG_NAME(matrix_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                     const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(matrix) *k = (const DSG_NAME(matrix) *)op;
    (void)ws;
    DSG_NAME(dsg_gemm)
    (y, 1, k->entries, k->n, false, x, 1, false, k->m, 1, k->n, 1, 0);
}

static void DSG_NAME(matrix_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                 const dsg_real *restrict x, const dsg_real *restrict v,
                                 void *ws)
{
    const DSG_NAME(matrix) *k = (const DSG_NAME(matrix) *)op;
    (void)x, (void)ws;
    DSG_NAME(dsg_gemm)
    (g, 1, k->entries, k->n, true, v, 1, false, k->n, 1, k->m, 1, 0);
}

static dsg_status DSG_NAME(matrix_data_step)(const DSG_NAME(dsg_op) *op,
                                             DSG_NAME(dsg_data_step) **step)
{
    const DSG_NAME(matrix) *k = (const DSG_NAME(matrix) *)op;
    double *entries = dsg_alloc(k->m * k->n, sizeof *entries);
    if (!entries)
        return DSG_ENOMEM;
    for (size_t i = 0; i < k->m * k->n; i++)
        entries[i] = k->entries[i]; /* as the operator itself has rounded them */
    dsg_status err =
        DSG_NAME(dsg_separable_create)(step, op, 1, k->m, k->n, 1, 1, entries, NULL);
    dsg_free(entries);
    return err;
}

static void DSG_NAME(matrix_destroy)(DSG_NAME(dsg_op) *op)
{
    DSG_NAME(matrix) *k = (DSG_NAME(matrix) *)op;
    dsg_free(k->entries);
    dsg_free(k);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(matrix_class) = {
    .linear = true,
    .forward = DSG_NAME(matrix_forward),
    .vjp = DSG_NAME(matrix_vjp),
    .data_step = DSG_NAME(matrix_data_step),
    .destroy = DSG_NAME(matrix_destroy),
};

dsg_status DSG_NAME(dsg_matrix_create)(DSG_NAME(dsg_op) **op, dsg_shape in,
                                       dsg_shape out, const double *matrix)
{
    size_t count;
    if (!dsg_shape_valid(in, sizeof(dsg_real)) ||
        !dsg_shape_valid(out, sizeof(dsg_real)) ||
        !dsg_mul(dsg_shape_size(in), dsg_shape_size(out), &count) ||
        count > PTRDIFF_MAX / sizeof(double) || dsg_shape_size(in) > INT_MAX ||
        dsg_shape_size(out) > INT_MAX) /* BLAS counts in int */
        return DSG_ESHAPE;
    for (size_t i = 0; i < count; i++)
        if (!isfinite((dsg_real)matrix[i]))
            return DSG_ENONFINITE;

    DSG_NAME(matrix) *k = dsg_calloc(1, sizeof *k);
    if (!k)
        return DSG_ENOMEM;
    k->entries = dsg_alloc(count, sizeof *k->entries);
    if (!k->entries) {
        dsg_free(k);
        return DSG_ENOMEM;
    }
    for (size_t i = 0; i < count; i++)
        k->entries[i] = (dsg_real)matrix[i];
    k->op.class = &DSG_NAME(matrix_class);
    k->op.in = in;
    k->op.out = out;
    k->m = dsg_shape_size(out);
    k->n = dsg_shape_size(in);
    *op = &k->op;
    return DSG_OK;
}
