static double *DSG_NAME(random_matrix)(size_t n, uint64_t *seed)
{
    double *matrix = malloc(n * sizeof *matrix);
    for (size_t i = 0; i < n; i++)
        matrix[i] = utest_random(seed);
    return matrix;
}

static void DSG_NAME(test_one_matrix)(dsg_shape in, dsg_shape out, uint64_t seed)
{
    size_t n = dsg_shape_size(in), m = dsg_shape_size(out), live = dsg_alloc_live();
    double *matrix = DSG_NAME(random_matrix)(m * n, &seed);
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, out, matrix) == DSG_OK);
    CHECK(op->in.c == in.c && op->in.h == in.h && op->in.w == in.w);
    CHECK(op->out.c == out.c && op->out.h == out.h && op->out.w == out.w);
    CHECK(op->class->linear);

    dsg_real *x = DSG_NAME(random_array)(n, &seed),
             *v = DSG_NAME(random_array)(m, &seed);
    dsg_real *y = DSG_NAME(nan_array)(m), *g = DSG_NAME(nan_array)(n);
    DSG_NAME(dsg_op_forward)(op, y, x, NULL);
    DSG_NAME(dsg_op_vjp)(op, g, NULL, v, NULL);
    double worst = 0.0;
    for (size_t i = 0; i < m; i++) {
        double want = 0.0;
        for (size_t j = 0; j < n; j++)
            want += (double)(dsg_real)matrix[i * n + j] * x[j];
        double d = fabs(want - y[i]);
        worst = d <= worst ? worst : d;
    }
    /* so many terms below 1, summed in any order, and those of the reference */
    double error = (double)(m > n ? m : n) * (DBL_EPSILON + DSG_NAME(epsilon)());
    CHECK_NEAR(worst, 0.0, error);
    worst = 0.0;
    for (size_t j = 0; j < n; j++) {
        double want = 0.0;
        for (size_t i = 0; i < m; i++)
            want += (double)(dsg_real)matrix[i * n + j] * v[i];
        double d = fabs(want - g[j]);
        worst = d <= worst ? worst : d;
    }
    CHECK_NEAR(worst, 0.0, error);
    DSG_NAME(check_operator)(op, error, seed);

    free(matrix);
    free(x);
    free(v);
    free(y);
    free(g);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

/* What the closed form gives is where the gradient of the data step vanishes. */
static void DSG_NAME(test_data_step_of_a_matrix)(dsg_shape in, dsg_shape out)
{
    size_t n = dsg_shape_size(in), m = dsg_shape_size(out), live = dsg_alloc_live();
    uint64_t seed = 6;
    double *matrix = DSG_NAME(random_matrix)(m * n, &seed);
    dsg_real *v = DSG_NAME(random_array)(n, &seed),
             *y = DSG_NAME(random_array)(m, &seed);
    dsg_real *x = DSG_NAME(nan_array)(n), *g = DSG_NAME(nan_array)(n);
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, out, matrix) == DSG_OK);
    CHECK_ALLOCATION_FAILURES(op->class->data_step(op, &step));
    CHECK(step && step->class && step->op == op);
    if (step) {
        void *ws = dsg_alloc(step->workspace, 1);
        double rho = 0.5, worst = 0.0;
        step->class->prox(step, x, v, y, rho, ws);
        dsg_free(ws);
        ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
        DSG_NAME(dsg_op_residual_gradient)(op, g, x, y, ws);
        dsg_free(ws);
        for (size_t i = 0; i < n; i++) {
            double d = fabs(g[i] + rho * (x[i] - v[i]));
            worst = d <= worst ? worst : d;
        }
        /* x, of size 1, is off by some epsilon n / rho of it, and ||A||^2 <= m n */
        CHECK_NEAR(worst, 0.0, 4 * DSG_NAME(epsilon)() * (double)(m * n) / rho);
        step->class->destroy(step);
    }
    free(matrix);
    free(v);
    free(y);
    free(x);
    free(g);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

/* A decomposition would take minutes: none is offered. */
static void DSG_NAME(test_a_large_matrix_has_no_closed_form)(void)
{
    dsg_shape shape = {.c = 1, .h = 1, .w = 2049};
    double *matrix = calloc(shape.w * shape.w, sizeof *matrix);
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, shape, shape, matrix) == DSG_OK);
    free(matrix);
    CHECK(op->class->data_step(op, &step) == DSG_OK && step == NULL);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_matrix_errors)(void)
{
    dsg_shape in = {.c = 1, .h = 2, .w = 3}, out = {.c = 2, .h = 1, .w = 2}, s;
    double matrix[24] = {0};
    DSG_NAME(dsg_op) *op = NULL;
    s = in, s.c = 0;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, s, out, matrix) == DSG_ESHAPE);
    s = in, s.h = 0;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, s, out, matrix) == DSG_ESHAPE);
    s = out, s.w = 0;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, s, matrix) == DSG_ESHAPE);
    s = out, s.w = SIZE_MAX / 2;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, s, matrix) == DSG_ESHAPE);
    /* both exist, the matrix cannot */
    s = (dsg_shape){.c = 1, .h = 1, .w = (size_t)1 << 33};
    CHECK(DSG_NAME(dsg_matrix_create)(&op, s, s, matrix) == DSG_ESHAPE);
    /* more than BLAS can count */
    s = (dsg_shape){.c = 1, .h = 1, .w = (size_t)1 << 31};
    dsg_shape one = {.c = 1, .h = 1, .w = 1};
    CHECK(DSG_NAME(dsg_matrix_create)(&op, s, one, matrix) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_matrix_create)(&op, one, s, matrix) == DSG_ESHAPE);
    matrix[23] = NAN;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, out, matrix) == DSG_ENONFINITE);
    matrix[23] = INFINITY;
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, out, matrix) == DSG_ENONFINITE);
    matrix[23] = 1e300; /* infinite in float */
    CHECK(DSG_NAME(dsg_matrix_create)(&op, in, out, matrix) ==
          (sizeof(dsg_real) == sizeof(float) ? DSG_ENONFINITE : DSG_OK));
    DSG_NAME(dsg_op_destroy)(op);
    matrix[23] = 0;
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_matrix_create)(&op, in, out, matrix));
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_matrix_all)(void)
{
    static const dsg_shape pairs[][2] = {
        {{1, 1, 1}, {1, 1, 1}},  {{1, 1, 2}, {2, 1, 1}},   {{3, 2, 5}, {1, 7, 1}},
        {{1, 1, 7}, {2, 3, 5}},  {{2, 4, 16}, {1, 4, 8}},  {{1, 1, 2}, {1, 2, 1031}},
        {{7, 1, 1}, {1, 13, 1}}, {{1, 3, 1031}, {1, 1, 6}}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        DSG_NAME(test_one_matrix)(pairs[i][0], pairs[i][1], i);
    DSG_NAME(test_data_step_of_a_matrix)(pairs[2][0], pairs[2][1]);
    DSG_NAME(test_data_step_of_a_matrix)(pairs[3][0], pairs[3][1]);
    DSG_NAME(test_a_large_matrix_has_no_closed_form)();
    DSG_NAME(test_matrix_errors)();
}
