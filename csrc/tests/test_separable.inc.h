/* Tall, wide, square and trivial factors, with and without either of them. */
static void DSG_NAME(test_prox_solves_the_normal_equations)(void)
{
    static const size_t sizes[][5] = {{1, 1, 1, 1, 1}, {2, 1, 3, 2, 1}, {1, 5, 5, 7, 7},
                                      {3, 4, 9, 3, 8}, {2, 9, 4, 8, 3}, {7, 2, 5, 5, 2},
                                      {1, 6, 6, 3, 7}, {3, 1, 1, 6, 6}};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int factors = 0; factors < 4; factors++) {
            size_t c = sizes[i][0], p = sizes[i][1], h = sizes[i][2];
            size_t q = sizes[i][3], w = sizes[i][4], live = dsg_alloc_live();
            double *r = random_matrix(p * h, &seed), *t = random_matrix(q * w, &seed);
            bool use_r = factors & 1, use_t = factors & 2;
            DSG_NAME(plain)
            op = DSG_NAME(make_plain)(c, use_r ? p : h, h, use_t ? q : w, w,
                                      use_r ? r : NULL, use_t ? t : NULL);
            DSG_NAME(dsg_data_step) *step = NULL;
            CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, c, op.p, h, op.q, w,
                                                 op.r, op.t) == DSG_OK);
            CHECK(step && step->op == &op.op);
            DSG_NAME(check_prox)(step, p + h + q + w, seed);
            DSG_NAME(check_data_step_batch)(step, 1e-3, NULL, seed);
            double norm = NAN, *a = DSG_NAME(dense_matrix)(&op.op);
            CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
            double want = dense_largest(a, c * op.p * op.q, c * h * w);
            CHECK_NEAR(norm, want, 1e-6 * want);
            free(a);
            DSG_NAME(dsg_data_step_destroy)(step);
            free(r);
            free(t);
            CHECK(dsg_alloc_live() == live);
        }
}

/* A matrix on flattened images, shapes of the operator that do not matter. */
static void DSG_NAME(test_a_dense_matrix_is_one_factor)(void)
{
    static const size_t sizes[][2] = {{1, 1}, {7, 24}, {24, 24}, {30, 24}, {5, 11}};
    uint64_t seed = 2;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t m = sizes[i][0], n = sizes[i][1];
        double *matrix = random_matrix(m * n, &seed);
        DSG_NAME(plain) op = DSG_NAME(make_plain)(1, m, n, 1, 1, matrix, NULL);
        if (n == 24)
            op.op.in = (dsg_shape){.c = 2, .h = 3, .w = 4};
        DSG_NAME(dsg_data_step) *step = NULL;
        CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, m, n, 1, 1, matrix,
                                             NULL) == DSG_OK);
        DSG_NAME(check_prox)(step, m + n, seed);
        DSG_NAME(dsg_data_step_destroy)(step);
        /* the same as a factor on the other side */
        CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, 1, 1, m, n, NULL,
                                             matrix) == DSG_OK);
        DSG_NAME(check_prox)(step, m + n, seed);
        DSG_NAME(dsg_data_step_destroy)(step);
        free(matrix);
    }
}

static void DSG_NAME(test_prox_of_a_factor_of_small_singular_values)(void)
{
    uint64_t seed = 3;
    double *r = gaussian_matrix(17), *t = gaussian_matrix(13);
    DSG_NAME(plain) op = DSG_NAME(make_plain)(1, 17, 17, 13, 13, r, t);
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, 17, 17, 13, 13, r, t) ==
          DSG_OK);
    DSG_NAME(check_prox)(step, 60, seed);
    DSG_NAME(dsg_data_step_destroy)(step);
    free(r);
    free(t);
}

/* What a measurement of an image looks like: rounding stays small against the
 * right-hand side itself. */
static void DSG_NAME(test_prox_of_a_consistent_measurement)(void)
{
    enum { N = 24 };
    static const double rhos[] = {1e-6, 1e-3, 1.0, 1e3};
    uint64_t seed = 4;
    double *r = gaussian_matrix(N);
    DSG_NAME(plain) op = DSG_NAME(make_plain)(1, N, N, N, N, r, r);
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, N, N, N, N, r, r) == DSG_OK);
    double *a = DSG_NAME(dense_matrix)(&op.op), b;
    dsg_real *truth = DSG_NAME(random_array)(N * N, &seed);
    dsg_real *v = DSG_NAME(random_array)(N * N, &seed);
    dsg_real *y = DSG_NAME(nan_array)(N * N), *x = DSG_NAME(nan_array)(N * N);
    DSG_NAME(dsg_op_forward)(&op.op, y, truth, NULL);
    for (size_t t = 0; t < sizeof rhos / sizeof *rhos; t++) {
        CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, rhos[t], NULL, NULL,
                                                 1) == DSG_OK);
        double residual =
            DSG_NAME(dense_residual)(a, x, v, y, rhos[t], N * N, N * N, &b);
        /* sums of 2 N terms, there and back */
        CHECK_NEAR(residual / b, 0.0, 4 * N * DSG_NAME(epsilon)());
    }
    DSG_NAME(dsg_data_step_destroy)(step);
    free(a);
    free(r);
    free(truth);
    free(v);
    free(y);
    free(x);
}

/* Ranks 2 and 1: rows that are combinations of others, factors of zeros. */
static void DSG_NAME(test_pinv_of_deficient_factors)(void)
{
    double r[12] = {1, 2, 3, 0, 1, -1, 1, 3, 2, 2, 5, 5}; /* (4, 3), rank 2 */
    double t[6] = {2, -1, -4, 2, 6, -3};                  /* (3, 2), rank 1 */
    double zero[12] = {0}, norm = NAN;
    DSG_NAME(plain) op = DSG_NAME(make_plain)(2, 4, 3, 3, 2, r, t);
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 2, 4, 3, 3, 2, r, t) == DSG_OK);
    /* singular values of r: 8.68.. and 1.9.., of t one */
    DSG_NAME(check_pinv)(step, 0.0, 12, 6.0, 5);
    DSG_NAME(check_pinv)(step, 1e-3, 12, 6.0, 6);
    DSG_NAME(check_prox)(step, 12, 7);
    DSG_NAME(dsg_data_step_destroy)(step);

    op = DSG_NAME(make_plain)(2, 4, 3, 3, 2, zero, t);
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 2, 4, 3, 3, 2, zero, t) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK && norm == 0.0);
    DSG_NAME(check_pinv)(step, 0.0, 12, 1.0, 8);
    DSG_NAME(check_prox)(step, 12, 9);
    DSG_NAME(dsg_data_step_destroy)(step);
}

static void DSG_NAME(test_pinv_drops_what_is_below_the_cutoff)(void)
{
    double r[4] = {4, 0, 0, 1}, t[4] = {0, 2, 1, 0}; /* d: 8, 4, 2, 1 */
    dsg_real y[4] = {8, 8, 8, 8}, x[4];
    DSG_NAME(plain) op = DSG_NAME(make_plain)(1, 2, 2, 2, 2, r, t);
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, 2, 2, 2, 2, r, t) == DSG_OK);
    CHECK_NEAR(step->norm, 8.0, 8 * DBL_EPSILON);
    /* y[0, 0] = 8 x[0, 1], y[0, 1] = 4 x[0, 0], y[1, 0] = 2 x[1, 1], y[1, 1] = x[1, 0]
     */
    static const struct {
        double cutoff, x[4];
    } cases[] = {{0.0, {2, 1, 8, 4}}, {0.1, {2, 1, 8, 4}}, {0.2, {2, 1, 0, 4}},
                 {0.3, {2, 1, 0, 0}}, {0.7, {0, 1, 0, 0}}, {1.5, {0, 0, 0, 0}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t j = 0; j < 4; j++)
            x[j] = (dsg_real)NAN;
        CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, x, y, cases[i].cutoff, NULL,
                                                 NULL, 1) == DSG_OK);
        for (size_t j = 0; j < 4; j++)
            CHECK_NEAR(x[j], cases[i].x[j], 16 * DSG_NAME(epsilon)());
    }
    DSG_NAME(dsg_data_step_destroy)(step);
}

/* Far outside what images have: no NaN, and the right limits. */
static void DSG_NAME(test_separable_at_the_ends_of_the_range)(void)
{
    double r[4] = {1e-170, 0, 0, 1}, t[1] = {1}; /* the square of 1e-170 is 0 */
    dsg_real v[2] = {1, 3}, y[2] = {0, 5}, x[2];
    DSG_NAME(plain) op = DSG_NAME(make_plain)(1, 2, 2, 1, 1, r, t);
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, 2, 2, 1, 1, r, t) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 1e-300, NULL, NULL, 1) ==
          DSG_OK);
    CHECK_NEAR(x[0], 1, 4 * DSG_NAME(epsilon)());
    CHECK_NEAR(x[1], 5, 20 * DSG_NAME(epsilon)());
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 1e300, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(x[0] == 1 && x[1] == 3);
    DSG_NAME(dsg_data_step_destroy)(step);
}

static void DSG_NAME(test_separable_errors)(void)
{
    double r[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, t[6] = {1, 0, 1, 0, 2, 0};
    DSG_NAME(plain) op = DSG_NAME(make_plain)(2, 2, 3, 3, 2, r, t);
    DSG_NAME(dsg_data_step) *step = NULL;
#define CREATE(c, p, h, q, w, r, t) \
    DSG_NAME(dsg_separable_create)(&step, &op.op, c, p, h, q, w, r, t)
    CHECK(CREATE(1, 2, 3, 3, 2, r, t) == DSG_ESHAPE);
    CHECK(CREATE(2, 3, 3, 2, 2, r, t) == DSG_OK); /* other shapes of the same sizes */
    DSG_NAME(dsg_data_step_destroy)(step);
    step = NULL;
    CHECK(CREATE(2, 3, 3, 3, 2, r, t) == DSG_ESHAPE);
    CHECK(CREATE(2, 2, 3, 2, 2, r, t) == DSG_ESHAPE);
    CHECK(CREATE(2, 2, 3, 3, 2, NULL, t) == DSG_ESHAPE);
    CHECK(CREATE(2, 2, 3, 3, 2, r, NULL) == DSG_ESHAPE);
    CHECK(CREATE(0, 2, 3, 3, 2, r, t) == DSG_ESHAPE);
    CHECK(CREATE(SIZE_MAX / 2 + 7, 2, 3, 3, 2, r, t) == DSG_ESHAPE);
    r[5] = NAN;
    CHECK(CREATE(2, 2, 3, 3, 2, r, t) == DSG_ENONFINITE);
    r[5] = 6, t[0] = INFINITY;
    CHECK(CREATE(2, 2, 3, 3, 2, r, t) == DSG_ENONFINITE);
    t[0] = 1;
    CHECK(step == NULL);
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(CREATE(2, 2, 3, 3, 2, r, t));
    DSG_NAME(dsg_data_step_destroy)(step);
    DSG_NAME(dsg_data_step_destroy)(NULL);
    CHECK(dsg_alloc_live() == live);
#undef CREATE

    /* too large for a decomposition, which is no failure; the short side decides */
    size_t n = DSG_SEPARABLE_MOST + 1;
    double *large = calloc(n * n, sizeof *large);
    op = DSG_NAME(make_plain)(1, n, n, 1, 1, large, NULL);
    step = (DSG_NAME(dsg_data_step) *)&op;
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, n, n, 1, 1, large, NULL) ==
          DSG_OK);
    CHECK(step == NULL);
    op = DSG_NAME(make_plain)(1, 1, n, 1, 1, large, NULL);
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, 1, n, 1, 1, large, NULL) ==
          DSG_OK);
    CHECK(step != NULL);
    DSG_NAME(dsg_data_step_destroy)(step);
    free(large);
    n = 50000; /* n^2 > INT_MAX */
    op = DSG_NAME(make_plain)(1, n, n, n, n, NULL, NULL);
    CHECK(DSG_NAME(dsg_separable_create)(&step, &op.op, 1, n, n, n, n, NULL, NULL) ==
          DSG_OK);
    CHECK(step == NULL);
}

static void DSG_NAME(test_separable_all)(void)
{
    DSG_NAME(test_prox_solves_the_normal_equations)();
    DSG_NAME(test_a_dense_matrix_is_one_factor)();
    DSG_NAME(test_prox_of_a_factor_of_small_singular_values)();
    DSG_NAME(test_prox_of_a_consistent_measurement)();
    DSG_NAME(test_pinv_of_deficient_factors)();
    DSG_NAME(test_pinv_drops_what_is_below_the_cutoff)();
    DSG_NAME(test_separable_at_the_ends_of_the_range)();
    DSG_NAME(test_separable_errors)();
}
