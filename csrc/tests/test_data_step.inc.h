/* ---- mask ---------------------------------------------------------------------- */

static void DSG_NAME(test_mask_data_step)(void)
{
    static const dsg_shape shapes[] = {
        {1, 1, 1}, {2, 1, 2}, {3, 2, 1}, {7, 3, 2}, {2, 5, 7}};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int shared = 0; shared < 2; shared++) {
            dsg_shape s = shapes[i];
            size_t channels = shared ? 1 : s.c, live = dsg_alloc_live();
            unsigned char mask[128];
            double norm = NAN, want = 0.0;
            for (size_t j = 0; j < channels * s.h * s.w; j++) {
                mask[j] = utest_random(&seed) > 0.0;
                want = mask[j] ? 1.0 : want;
            }
            DSG_NAME(dsg_op) *op = NULL;
            DSG_NAME(dsg_data_step) *step = NULL;
            CHECK(DSG_NAME(dsg_mask_create)(&op, s, mask, channels) == DSG_OK);
            CHECK(DSG_NAME(dsg_data_step_create)(&step, op) == DSG_OK);
            CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK && norm == want);
            DSG_NAME(check_prox)(step, 1, seed);
            DSG_NAME(check_pinv)(step, 0.0, 1, 1.0, seed);
            DSG_NAME(check_data_step_batch)(step, 0.0, NULL, seed);
            DSG_NAME(dsg_data_step_destroy)(step);
            step = NULL;
            CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_data_step_create)(&step, op));
            DSG_NAME(dsg_data_step_destroy)(step);
            DSG_NAME(dsg_op_destroy)(op);
            CHECK(dsg_alloc_live() == live);
        }
}

static void DSG_NAME(test_mask_prox_ignores_masked_measurements)(void)
{
    static const unsigned char mask[4] = {1, 0, 1, 0}, none[4] = {0};
    dsg_shape shape = {.c = 1, .h = 2, .w = 2};
    dsg_real y[4] = {3, (dsg_real)NAN, -1, (dsg_real)INFINITY}, v[4] = {1, 2, 3, 4};
    dsg_real x[4];
    double norm = NAN;
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, op) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 1.0, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(x[0] == 2 && x[1] == 2 && x[2] == 1 && x[3] == 4);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 1e300, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(x[0] == 1 && x[1] == 2 && x[2] == 3 && x[3] == 4);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 1e-300, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(x[0] == 3 && x[1] == 2 && x[2] == -1 && x[3] == 4);
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, x, y, 0.5, NULL, NULL, 1) == DSG_OK);
    CHECK(x[0] == 3 && x[1] == 0 && x[2] == -1 && x[3] == 0);
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, x, y, 1.0, NULL, NULL, 1) == DSG_OK);
    CHECK(x[0] == 0 && x[1] == 0 && x[2] == 0 && x[3] == 0);
    DSG_NAME(dsg_data_step_destroy)(step);
    DSG_NAME(dsg_op_destroy)(op);

    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, none, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, op) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK && norm == 0.0);
    DSG_NAME(dsg_data_step_destroy)(step);
    DSG_NAME(dsg_op_destroy)(op);
}

/* ---- resize -------------------------------------------------------------------- */

static void DSG_NAME(test_resize_data_step)(void)
{
    static const dsg_shape shapes[] = {{1, 1, 1},   {2, 1, 5},   {3, 9, 2}, {7, 3, 4},
                                       {1, 16, 12}, {2, 11, 13}, {1, 17, 3}};
    static const size_t factors[] = {1, 2, 3, 4, 7};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t k = 0; k < sizeof factors / sizeof *factors; k++) {
            dsg_shape s = shapes[i];
            size_t f = factors[k], live = dsg_alloc_live(), seed = 10 * i + k;
            /* sums of at most 4 f + 3 taps an axis, and over an axis */
            size_t terms = 2 * (4 * f + 3) + s.h + s.w;
            DSG_NAME(dsg_op) *op = NULL;
            DSG_NAME(dsg_data_step) *step = NULL;
            double norm = NAN;
            CHECK(DSG_NAME(dsg_resize_create)(&op, s, f) == DSG_OK);
            CHECK(DSG_NAME(dsg_data_step_create)(&step, op) == DSG_OK);
            DSG_NAME(check_prox)(step, terms, seed);
            /* at these sizes an axis' largest and smallest value are a factor of at
             * most 2 apart where its length is no less than the factor */
            DSG_NAME(check_pinv)(step, 0.0, terms, 4.0, seed);
            CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
            double *a = DSG_NAME(dense_matrix)(op);
            double want = dense_largest(a, dsg_shape_size(op->out), dsg_shape_size(s));
            /* weights of the operator are rounded once an axis */
            CHECK_NEAR(norm, want, (1e-6 + 4 * DSG_NAME(epsilon)()) * want);
            free(a);
            if (k % 3 == 1)
                DSG_NAME(check_data_step_batch)(step, 0.0, NULL, seed);
            DSG_NAME(dsg_data_step_destroy)(step);
            step = NULL;
            if (k % 3 == 1) {
                CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_data_step_create)(&step, op));
                DSG_NAME(dsg_data_step_destroy)(step);
            }
            DSG_NAME(dsg_op_destroy)(op);
            CHECK(dsg_alloc_live() == live);
        }
}

/* The largest singular value of an axis is 1/2 where 4 divides its length: constants
 * are kept, and there are four times as many entries before. */
static void DSG_NAME(test_resize_by_four_has_the_known_norm)(void)
{
    dsg_shape shape = {.c = 1, .h = 256, .w = 256};
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    double norm = NAN;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 4) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, op) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
    CHECK_NEAR(norm, 0.25, 1e-12);
    DSG_NAME(dsg_data_step_destroy)(step);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_long_axes_have_no_closed_form)(void)
{
    dsg_shape shape = {.c = 1, .h = 2 * 2049, .w = 1};
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 2) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, op) == DSG_OK);
    CHECK(step->class == NULL);
    DSG_NAME(dsg_data_step_destroy)(step);
    DSG_NAME(dsg_op_destroy)(op);
}

/* ---- conjugate gradients -------------------------------------------------------- */

/* An operator of loops with random factors, and its data step. */
typedef struct DSG_NAME(fixture) {
    DSG_NAME(plain) op;
    DSG_NAME(dsg_data_step) *step;
    double r[400], t[400];
    size_t n, m;
} DSG_NAME(fixture);

static void DSG_NAME(set_up)(DSG_NAME(fixture) *f, size_t c, size_t p, size_t h,
                             size_t q, size_t w, uint64_t seed)
{
    for (size_t i = 0; i < p * h; i++)
        f->r[i] = utest_random(&seed);
    for (size_t i = 0; i < q * w; i++)
        f->t[i] = utest_random(&seed);
    f->op = DSG_NAME(make_plain)(c, p, h, q, w, f->r, f->t);
    f->n = c * h * w;
    f->m = c * p * q;
    f->step = NULL;
    CHECK(DSG_NAME(dsg_data_step_create)(&f->step, &f->op.op) == DSG_OK);
    CHECK(f->step && f->step->class == NULL);
}

static void DSG_NAME(test_cg_solves_the_normal_equations)(void)
{
    static const size_t sizes[][5] = {{1, 1, 1, 1, 1}, {2, 1, 3, 2, 1}, {1, 5, 5, 7, 7},
                                      {3, 4, 9, 3, 8}, {2, 9, 4, 8, 3}, {7, 2, 5, 5, 2},
                                      {1, 17, 8, 3, 7}};
    static const double rhos[] = {1e-3, 0.1, 1.0, 30.0, 1e3};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        DSG_NAME(fixture) f;
        const size_t *s = sizes[i];
        uint64_t seed = 40 + i;
        size_t live = dsg_alloc_live();
        DSG_NAME(set_up)(&f, s[0], s[1], s[2], s[3], s[4], seed);
        double *a = DSG_NAME(dense_matrix)(&f.op.op), norm = dense_largest(a, f.m, f.n);
        double tolerance = DSG_PRECISION == 32 ? 1e-5 : 1e-12, b;
        dsg_cg_options options = {.tolerance = tolerance, .iterations = 5000};
        dsg_real *v = DSG_NAME(random_array)(f.n, &seed);
        dsg_real *y = DSG_NAME(random_array)(f.m, &seed);
        dsg_real *x = DSG_NAME(nan_array)(f.n);
        for (size_t t = 0; t < sizeof rhos / sizeof *rhos; t++) {
            dsg_cg_info info = {.residual = NAN};
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, rhos[t], &options,
                                                     &info, 1) == DSG_OK);
            double residual =
                DSG_NAME(dense_residual)(a, x, v, y, rhos[t], f.m, f.n, &b);
            CHECK(info.residual <= tolerance);
            /* products of the operator are summed in double and rounded once, and so is
             * each update; sizes of what is added up as in check_prox */
            double sizes_added =
                norm * sqrt((double)f.m) +
                (norm * norm + rhos[t]) *
                    (sqrt(DSG_NAME(dot)(x, x, f.n)) + sqrt((double)f.n));
            CHECK_NEAR(residual / b, info.residual,
                       8 * DSG_NAME(epsilon)() * sizes_added / b);
        }
        free(a);
        free(v);
        free(y);
        free(x);
        DSG_NAME(dsg_data_step_destroy)(f.step);
        CHECK(dsg_alloc_live() == live);
    }
}

/* In exact arithmetic as many steps as there are different singular values of M. */
static void DSG_NAME(test_cg_ends_after_as_many_steps_as_values)(void)
{
    double r[9] = {3, 0, 0, 0, 2, 0, 0, 0, 1}, t[1] = {1};
    dsg_real v[3] = {1, -1, 2}, y[3] = {1, 1, 1}, x[3];
    DSG_NAME(plain) op = DSG_NAME(make_plain)(1, 3, 3, 1, 1, r, t);
    DSG_NAME(dsg_data_step) *step = NULL;
    dsg_cg_options options = {.tolerance = 64 * DSG_NAME(epsilon)(), .iterations = 50};
    dsg_cg_info info;
    CHECK(DSG_NAME(dsg_data_step_create)(&step, &op.op) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 1.0, &options, &info, 1) ==
          DSG_OK);
    CHECK(info.iterations == 3);
    /* (d y + v) / (d^2 + 1) */
    CHECK_NEAR(x[0], 0.4, 64 * DSG_NAME(epsilon)());
    CHECK_NEAR(x[1], 0.2, 64 * DSG_NAME(epsilon)());
    CHECK_NEAR(x[2], 1.5, 64 * DSG_NAME(epsilon)());
    DSG_NAME(dsg_data_step_destroy)(step);
}

static void DSG_NAME(test_cg_is_honest_about_its_residual)(void)
{
    DSG_NAME(fixture) f;
    uint64_t seed = 60;
    DSG_NAME(set_up)(&f, 1, 12, 12, 11, 11, seed);
    double *a = DSG_NAME(dense_matrix)(&f.op.op), b;
    dsg_real *v = DSG_NAME(random_array)(f.n, &seed);
    dsg_real *y = DSG_NAME(random_array)(f.m, &seed), *x = DSG_NAME(nan_array)(f.n);

    /* stopped early: the residual of 1, 5, 49, 50, 51 steps */
    static const size_t counts[] = {1, 5, 49, 50, 51};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        dsg_cg_options options = {.tolerance = 1e-16, .iterations = counts[i]};
        dsg_cg_info info = {.residual = NAN};
        CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, 1e-3, &options, &info,
                                                 1) == DSG_OK);
        CHECK(info.iterations == counts[i]);
        double residual = DSG_NAME(dense_residual)(a, x, v, y, 1e-3, f.m, f.n, &b);
        CHECK_NEAR(info.residual, residual / b, 1e-3 * residual / b);
        CHECK(info.residual > 0.0);
    }

    /* a tolerance no precision reaches: an end all the same, long before the limit */
    static const double rhos[] = {1e-6, 1e-2, 1.0, 1e3};
    for (size_t i = 0; i < sizeof rhos / sizeof *rhos; i++) {
        dsg_cg_options options = {.tolerance = 1e-30, .iterations = 1000000};
        dsg_cg_info info = {.residual = NAN};
        CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, rhos[i], &options,
                                                 &info, 1) == DSG_OK);
        CHECK(info.iterations < 5000);
        CHECK(info.residual >= 0.0);
        double residual = DSG_NAME(dense_residual)(a, x, v, y, rhos[i], f.m, f.n, &b);
        double norm = dense_largest(a, f.m, f.n);
        double sizes = norm * sqrt((double)f.m) +
                       (norm * norm + rhos[i]) *
                           (sqrt(DSG_NAME(dot)(x, x, f.n)) + sqrt((double)f.n));
        CHECK_NEAR(residual / b, info.residual, 8 * DSG_NAME(epsilon)() * sizes / b);
        CHECK_NEAR(residual, 0.0, 64 * DSG_NAME(epsilon)() * sizes);
    }
    free(a);
    free(v);
    free(y);
    free(x);
    DSG_NAME(dsg_data_step_destroy)(f.step);
}

static void DSG_NAME(test_cg_without_anything_to_solve)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, 2, 3, 4, 2, 3, 70);
    uint64_t seed = 71;
    dsg_real zero[24] = {0}, x[24], *v = DSG_NAME(random_array)(24, &seed);
    dsg_cg_options options = {.tolerance = 1e-5, .iterations = 100};
    dsg_cg_info info = {.residual = NAN, .iterations = 9};
    for (size_t i = 0; i < 24; i++)
        x[i] = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, zero, zero, 1.0, &options,
                                             &info, 1) == DSG_OK);
    CHECK(memcmp(x, zero, sizeof x) == 0);
    CHECK(info.residual == 0.0 && info.iterations == 0);
    x[0] = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(f.step, x, zero, 0.1, &options, &info,
                                             1) == DSG_OK);
    CHECK(memcmp(x, zero, sizeof x) == 0);
    CHECK(info.residual == 0.0 && info.iterations == 0);

    /* so heavy a prior that v is the solution, and none at all */
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, zero, 1e300, &options, &info,
                                             1) == DSG_OK);
    CHECK(memcmp(x, v, sizeof x) == 0);
    CHECK(info.residual <= 1e-5 && info.iterations == 0);
    options.iterations = 10000;
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, zero, 1e-300, &options,
                                             &info, 1) == DSG_OK);
    for (size_t i = 0; i < 24; i++)
        CHECK(isfinite(x[i]));
    CHECK(isfinite(info.residual));

    /* a NaN is not hidden */
    v[3] = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, zero, 1.0, &options, &info,
                                             1) == DSG_OK);
    CHECK(isnan(x[0]) && isnan(info.residual) && info.iterations == 0);
    free(v);
    DSG_NAME(dsg_data_step_destroy)(f.step);

    /* an operator of zeros: x = v, and 0 for the pseudo-inverse */
    memset(f.r, 0, sizeof f.r);
    v = DSG_NAME(random_array)(24, &seed);
    CHECK(DSG_NAME(dsg_data_step_create)(&f.step, &f.op.op) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, v, 0.5, &options, &info,
                                             1) == DSG_OK);
    CHECK(memcmp(x, v, sizeof x) == 0);
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(f.step, x, v, 0.1, &options, &info, 1) ==
          DSG_OK);
    CHECK(memcmp(x, zero, sizeof x) == 0);
    free(v);
    DSG_NAME(dsg_data_step_destroy)(f.step);
}

/* (A^T A + delta)^-1 A^T y with delta = (cutoff norm)^2. */
static void DSG_NAME(test_cg_pinv_is_the_damped_solution)(void)
{
    DSG_NAME(fixture) f;
    uint64_t seed = 80;
    DSG_NAME(set_up)(&f, 2, 4, 6, 7, 5, seed);
    double *a = DSG_NAME(dense_matrix)(&f.op.op), norm = dense_largest(a, f.m, f.n), b;
    double delta = 0.05 * norm * 0.05 * norm;
    dsg_real *y = DSG_NAME(random_array)(f.m, &seed), *x = DSG_NAME(nan_array)(f.n);
    double tolerance = DSG_PRECISION == 32 ? 1e-5 : 1e-11;
    dsg_cg_options options = {.tolerance = tolerance, .iterations = 2000};
    dsg_cg_info info = {.residual = NAN};
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(f.step, x, y, 0.05, &options, &info, 1) ==
          DSG_OK);
    CHECK(info.residual <= tolerance && info.iterations > 0);
    double residual = DSG_NAME(dense_residual)(a, x, NULL, y, delta, f.m, f.n, &b);
    /* delta is known as well as the norm, the square of it half as well */
    double norm_error = DSG_PRECISION == 32 ? 1e-4 : 1e-6;
    double size = sqrt(DSG_NAME(dot)(x, x, f.n));
    CHECK_NEAR(residual, 0.0, 2 * tolerance * b + 2 * norm_error * delta * size);
    free(a);
    free(y);
    free(x);
    DSG_NAME(check_data_step_batch)(f.step, 0.05, &options, seed);
    DSG_NAME(dsg_data_step_destroy)(f.step);
}

/* Conjugate gradients and the closed form of the same operator. */
static void DSG_NAME(test_cg_agrees_with_the_closed_form)(void)
{
    dsg_shape shape = {.c = 3, .h = 40, .w = 37};
    size_t n = dsg_shape_size(shape);
    uint64_t seed = 90;
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *closed = NULL, *iterated = NULL;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 4) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_create)(&closed, op) == DSG_OK);
    DSG_NAME(dsg_op_class) open = *op->class;
    const DSG_NAME(dsg_op_class) *own = op->class;
    open.data_step = NULL;
    op->class = &open;
    CHECK(DSG_NAME(dsg_data_step_create)(&iterated, op) == DSG_OK);
    CHECK(closed->class && !iterated->class);

    size_t m = dsg_shape_size(op->out);
    dsg_real *v = DSG_NAME(random_array)(n, &seed),
             *y = DSG_NAME(random_array)(m, &seed);
    dsg_real *x = DSG_NAME(nan_array)(n), *z = DSG_NAME(nan_array)(n);
    double tolerance = DSG_PRECISION == 32 ? 1e-6 : 1e-13;
    dsg_cg_options options = {.tolerance = tolerance, .iterations = 1000};
    dsg_cg_info info;
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(closed, x, v, y, 0.01, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_prox_batch)(iterated, z, v, y, 0.01, &options, &info,
                                             1) == DSG_OK);
    CHECK(info.residual <= tolerance);
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)x[i] - z[i]) * ((double)x[i] - z[i]);
        size += (double)x[i] * x[i];
    }
    /* the condition of M is 0.25^2 / 0.01 + 1 = 7.25 */
    CHECK_NEAR(sqrt(difference / size), 0.0, 32 * tolerance);

    double norm_closed = NAN, norm = NAN;
    CHECK(DSG_NAME(dsg_data_step_norm)(closed, &norm_closed) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_norm)(iterated, &norm) == DSG_OK);
    CHECK_NEAR(norm, norm_closed, (DSG_PRECISION == 32 ? 1e-4 : 1e-6) * norm_closed);
    op->class = own;
    free(v);
    free(y);
    free(x);
    free(z);
    DSG_NAME(dsg_data_step_destroy)(closed);
    DSG_NAME(dsg_data_step_destroy)(iterated);
    DSG_NAME(dsg_op_destroy)(op);
}

/* ---- norm ----------------------------------------------------------------------- */

static void DSG_NAME(test_norm_of_random_operators)(void)
{
    static const size_t sizes[][5] = {{1, 1, 1, 1, 1}, {1, 1, 7, 1, 1},
                                      {1, 6, 1, 1, 1}, {3, 4, 9, 3, 8},
                                      {2, 9, 4, 8, 3}, {1, 17, 8, 3, 7}};
    double tolerance = DSG_PRECISION == 32 ? 1e-4 : 1e-6;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        DSG_NAME(fixture) f;
        const size_t *s = sizes[i];
        DSG_NAME(set_up)(&f, s[0], s[1], s[2], s[3], s[4], 100 + i);
        double *a = DSG_NAME(dense_matrix)(&f.op.op), norm = NAN, again = NAN;
        double want = dense_largest(a, f.m, f.n);
        CHECK(DSG_NAME(dsg_data_step_norm)(f.step, &norm) == DSG_OK);
        CHECK_NEAR(norm, want, tolerance * want);
        CHECK(DSG_NAME(dsg_data_step_norm)(f.step, &again) == DSG_OK && again == norm);
        free(a);
        DSG_NAME(dsg_data_step_destroy)(f.step);
    }
}

/* Operators whose norm is known. */
static void DSG_NAME(test_norm_of_known_operators)(void)
{
    enum { N = 300 };
    double tolerance = DSG_PRECISION == 32 ? 1e-4 : 1e-6, norm = NAN;
    double *r = calloc(N * N, sizeof *r);
    DSG_NAME(dsg_data_step) *step = NULL;
    DSG_NAME(plain) op = DSG_NAME(make_plain)(1, N, N, 2, 2, NULL, NULL);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, &op.op) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
    CHECK_NEAR(norm, 1.0, tolerance); /* the identity */

    op = DSG_NAME(make_plain)(1, N, N, 1, 1, r, NULL);
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK && norm == 0.0);

    r[5 * N + 9] = -3e-5; /* a single entry, rank one */
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
    CHECK_NEAR(norm, 3e-5, 3e-5 * tolerance);

    /* values that pile up below the largest, 2 + 2 cos(pi / (N + 1)): second
     * differences with all signs equal */
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++)
            r[i * N + j] = i == j ? 2.0 : (i == j + 1 || j == i + 1) ? 1.0 : 0.0;
    double want = 2.0 + 2.0 * cos(acos(-1.0) / (N + 1));
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
    CHECK_NEAR(norm, want, want * tolerance);

    /* one value barely ahead of many equal ones */
    memset(r, 0, N * N * sizeof *r);
    for (size_t i = 0; i < N; i++)
        r[i * N + i] = i == 17 ? 1.001 : 1.0;
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
    CHECK_NEAR(norm, 1.001, 1.001 * tolerance);

    r[0] = INFINITY;
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_ENOCONV);
    DSG_NAME(dsg_data_step_destroy)(step);
    free(r);
}

/* ---- errors --------------------------------------------------------------------- */

static dsg_status DSG_NAME(no_closed_form)(const DSG_NAME(dsg_op) *op,
                                           DSG_NAME(dsg_data_step) **step)
{
    (void)op;
    *step = NULL;
    return DSG_OK;
}

static dsg_status DSG_NAME(failing_set_up)(const DSG_NAME(dsg_op) *op,
                                           DSG_NAME(dsg_data_step) **step)
{
    (void)op;
    (void)step;
    return DSG_ENOCONV;
}

static void DSG_NAME(test_data_step_errors)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, 1, 2, 3, 2, 2, 120);
    DSG_NAME(dsg_data_step) *step = NULL;
    DSG_NAME(dsg_op_class) class = *f.op.op.class;
    DSG_NAME(plain) op = f.op;
    op.op.class = &class;
    class.linear = false;
    CHECK(DSG_NAME(dsg_data_step_create)(&step, &op.op) == DSG_EVALUE && !step);
    class.linear = true;
    class.data_step = DSG_NAME(failing_set_up);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, &op.op) == DSG_ENOCONV && !step);
    class.data_step = DSG_NAME(no_closed_form);
    CHECK(DSG_NAME(dsg_data_step_create)(&step, &op.op) == DSG_OK);
    CHECK(step && step->class == NULL);
    DSG_NAME(dsg_data_step_destroy)(step);
    DSG_NAME(dsg_data_step_destroy)(NULL);

    dsg_real v[6] = {1, 2, 3, 4, 5, 6}, y[4] = {1, 1, 1, 1}, x[6];
    static const double bad[] = {0.0, -1.0, NAN, INFINITY, -INFINITY};
    unsigned char mask[6] = {1, 0, 1, 1, 0, 1};
    dsg_shape shape = {.c = 1, .h = 3, .w = 2};
    DSG_NAME(dsg_op) *masked = NULL;
    DSG_NAME(dsg_data_step) *closed = NULL;
    CHECK(DSG_NAME(dsg_mask_create)(&masked, shape, mask, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_create)(&closed, masked) == DSG_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (size_t b = 0; b < 2; b++) {
            dsg_cg_options good = {.tolerance = 1e-5, .iterations = 10}, o = good;
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, bad[i], &good,
                                                     NULL, b) == DSG_EVALUE);
            CHECK(DSG_NAME(dsg_data_step_pinv_batch)(f.step, x, y, bad[i], &good, NULL,
                                                     b) == DSG_EVALUE);
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(closed, x, v, v, bad[i], NULL,
                                                     NULL, b) == DSG_EVALUE);
            CHECK(DSG_NAME(dsg_data_step_pinv_batch)(closed, x, v, bad[i], NULL, NULL,
                                                     b) ==
                  (bad[i] == 0.0 ? DSG_OK : DSG_EVALUE));
            o.tolerance = bad[i];
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, 1.0, &o, NULL,
                                                     b) == DSG_EVALUE);
            CHECK(DSG_NAME(dsg_data_step_pinv_batch)(f.step, x, y, 0.1, &o, NULL, b) ==
                  DSG_EVALUE);
            o = (dsg_cg_options){.tolerance = 1e-5};
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, 1.0, &o, NULL,
                                                     b) == DSG_EVALUE);
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(f.step, x, v, y, 1.0, NULL, NULL,
                                                     b) == DSG_EVALUE);
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(closed, x, v, v, 1.0, &o, NULL,
                                                     b) == DSG_EVALUE);
        }
    DSG_NAME(dsg_data_step_destroy)(closed);
    DSG_NAME(dsg_op_destroy)(masked);

    double norm = NAN;
    size_t live = dsg_alloc_live();
    step = NULL;
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_data_step_create)(&step, &f.op.op));
    DSG_NAME(dsg_data_step_destroy)(step);
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_data_step_norm)(f.step, &norm));
    CHECK(dsg_alloc_live() == live);
    DSG_NAME(dsg_data_step_destroy)(f.step);
}

static void DSG_NAME(test_data_step_all)(void)
{
    DSG_NAME(test_mask_data_step)();
    DSG_NAME(test_mask_prox_ignores_masked_measurements)();
    DSG_NAME(test_resize_data_step)();
    DSG_NAME(test_resize_by_four_has_the_known_norm)();
    DSG_NAME(test_long_axes_have_no_closed_form)();
    DSG_NAME(test_cg_solves_the_normal_equations)();
    DSG_NAME(test_cg_ends_after_as_many_steps_as_values)();
    DSG_NAME(test_cg_is_honest_about_its_residual)();
    DSG_NAME(test_cg_without_anything_to_solve)();
    DSG_NAME(test_cg_pinv_is_the_damped_solution)();
    DSG_NAME(test_cg_agrees_with_the_closed_form)();
    DSG_NAME(test_norm_of_random_operators)();
    DSG_NAME(test_norm_of_known_operators)();
    DSG_NAME(test_data_step_errors)();
}
