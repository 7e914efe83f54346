/* Tests of the closed forms for one precision. */

/* A (m, n) in double: column j is the operator's answer to pixel j. */
static double *DSG_NAME(dense_matrix)(const DSG_NAME(dsg_op) *op)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    double *a = malloc(m * n * sizeof *a);
    dsg_real *x = DSG_NAME(nan_array)(n), *y = DSG_NAME(nan_array)(m);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < n; i++)
            x[i] = i == j;
        DSG_NAME(dsg_op_forward)(op, y, x, ws);
        for (size_t k = 0; k < m; k++)
            a[k * n + j] = y[k];
    }
    dsg_free(ws);
    free(x);
    free(y);
    return a;
}

/* The prox and the norm of a step against the matrix of its operator. */
static void DSG_NAME(check_prox)(const DSG_NAME(dsg_data_step) *step, double rho,
                                 uint64_t seed)
{
    const DSG_NAME(dsg_op) *op = step->op;
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *v = DSG_NAME(random_array)(n, &seed), *x = DSG_NAME(nan_array)(n);
    dsg_real *y = DSG_NAME(random_array)(m, &seed);
    double *a = DSG_NAME(dense_matrix)(op), *gram = malloc(n * n * sizeof *gram);
    double *want = malloc(n * sizeof *want);
    double one = DSG_NAME(epsilon)() * (log2((double)n) + 3) * sqrt((double)(n + m));
    double norm = step->norm;
    make_gram(gram, a, m, n);
    CHECK(singular_values_below(gram, n, norm * (1 + 2 * one)));
    CHECK(!singular_values_below(gram, n, norm * (1 - 2 * one)));
    for (size_t i = 0; i < n; i++)
        gram[i * n + i] += rho;
    for (size_t i = 0; i < n; i++) {
        want[i] = rho * v[i];
        for (size_t k = 0; k < m; k++)
            want[i] += a[k * n + i] * y[k];
    }
    CHECK(eliminate(gram, want, n));
    void *ws = dsg_alloc(step->workspace, 1);
    step->class->prox(step, x, v, y, rho, ws);

    /* x = v + (A^T A + rho)^-1 A^T (y - A v): the middle factor is at most gain, and
     * relative errors of some eps log2(n) in A, y and v go through it, those in A
     * twice; the elimination in double loses the condition of A^T A + rho */
    double gain = 1.0 / (2.0 * sqrt(rho)), worst = 0.0;
    double tolerance = 8 * one * (1 + norm * gain) * (1 + gain * (1 + norm)) +
                       DBL_EPSILON * (double)n * (norm * norm / rho + 1) * (1 + gain);
    for (size_t i = 0; i < n; i++) {
        double d = fabs(want[i] - x[i]);
        worst = d <= worst ? worst : d;
    }
    CHECK_NEAR(worst, 0.0, tolerance);
    dsg_free(ws);
    free(v);
    free(x);
    free(y);
    free(a);
    free(gram);
    free(want);
}

/* A x = y where A can be inverted, whose step is asked for A^+ y: entries of the
 * kernel `strong` larger than their sum see to it. */
static void DSG_NAME(check_inverse)(const DSG_NAME(dsg_data_step) *step, double strong,
                                    uint64_t seed)
{
    const DSG_NAME(dsg_op) *op = step->op;
    size_t n = dsg_shape_size(op->in);
    dsg_real *x = DSG_NAME(nan_array)(n), *y = DSG_NAME(random_array)(n, &seed);
    double *a = DSG_NAME(dense_matrix)(op), *want = malloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++)
        want[i] = y[i];
    CHECK(eliminate(a, want, n));
    void *ws = dsg_alloc(step->workspace, 1);
    static const double cutoffs[] = {0.0, 1e-6};
    for (size_t k = 0; k < 2; k++) {
        double worst = 0.0;
        step->class->pinv(step, x, y, cutoffs[k], ws);
        for (size_t i = 0; i < n; i++) {
            double d = fabs(want[i] - x[i]);
            worst = d <= worst ? worst : d;
        }
        /* |B| >= 1, so errors grow by at most norm */
        CHECK_NEAR(worst, 0.0,
                   8 * DSG_NAME(epsilon)() * (log2((double)n) + 3) * sqrt((double)n) *
                       (1 + strong));
    }
    dsg_free(ws);
    free(x);
    free(y);
    free(a);
    free(want);
}

/* Even and odd, prime, one pixel; kernels smaller and larger than the image. */
static const struct {
    dsg_shape shape;
    dsg_blur_geometry g;
} DSG_NAME(circular_cases)[] = {
    {{1, 1, 1}, {1, 1, 0, 0, 0, 0, DSG_BORDER_CIRCULAR}},
    {{2, 1, 1}, {3, 2, 1, 1, 0, 0, DSG_BORDER_CIRCULAR}},
    {{3, 1, 7}, {1, 3, 0, 2, 0, 0, DSG_BORDER_CIRCULAR}},
    {{1, 6, 1}, {4, 1, 0, 0, 0, 0, DSG_BORDER_CIRCULAR}},
    {{2, 2, 5}, {2, 4, 1, 1, 0, 0, DSG_BORDER_CIRCULAR}},
    {{7, 3, 4}, {3, 3, 1, 1, 0, 0, DSG_BORDER_CIRCULAR}},
    {{1, 8, 11}, {5, 4, 4, 2, 0, 0, DSG_BORDER_CIRCULAR}},
    {{1, 7, 8}, {9, 17, 0, 16, 0, 0, DSG_BORDER_CIRCULAR}},
};

enum { DSG_NAME(CIRCULAR_CASES) = 8 };

/* A kernel of random entries, the one at the centre larger by their number: no
 * eigenvalue is smaller than 1.  `rank_one` makes it separable. */
static void DSG_NAME(random_kernel)(double *kernel, const dsg_blur_geometry *g,
                                    bool rank_one, uint64_t *seed)
{
    double row[32];
    for (size_t b = 0; b < g->kw; b++)
        row[b] = utest_random(seed);
    for (size_t a = 0; a < g->kh; a++) {
        double column = utest_random(seed);
        for (size_t b = 0; b < g->kw; b++)
            kernel[a * g->kw + b] = rank_one ? column * row[b] : utest_random(seed);
    }
    if (!rank_one)
        kernel[g->centre_row * g->kw + g->centre_column] +=
            (double)(g->kh * g->kw) + 1.0;
}

static void DSG_NAME(test_circular_prox_solves_the_normal_equations)(void)
{
    static const double rhos[] = {1e-2, 1.0, 300.0};
    uint64_t seed = 1;
    for (size_t k = 0; k < DSG_NAME(CIRCULAR_CASES); k++)
        for (int form = DSG_BLUR_AUTO; form <= DSG_BLUR_FFT; form++) {
            const dsg_blur_geometry *g = &DSG_NAME(circular_cases)[k].g;
            double kernel[256], sum = 1.0;
            bool rank_one = form == DSG_BLUR_SEPARABLE;
            DSG_NAME(random_kernel)(kernel, g, rank_one, &seed);
            for (size_t i = 0; i < g->kh * g->kw; i++)
                sum += fabs(kernel[i]);
            DSG_NAME(dsg_op) *op = NULL;
            DSG_NAME(dsg_data_step) *step = NULL;
            CHECK(DSG_NAME(dsg_blur_create)(&op, DSG_NAME(circular_cases)[k].shape,
                                            kernel, g, (dsg_blur_form)form) == DSG_OK);
            CHECK(op->class->data_step(op, &step) == DSG_OK);
            CHECK(step != NULL && step->op == op && step->class != NULL);
            for (size_t r = 0; r < 3; r++)
                DSG_NAME(check_prox)(step, rhos[r], seed++);
            if (!rank_one)
                DSG_NAME(check_inverse)(step, sum, seed++);
            step->class->destroy(step);
            DSG_NAME(dsg_op_destroy)(op);
        }
}

/* The mean of two neighbours on an even number of columns: alternating columns are
 * lost.  A^+ y then solves A^T A x = A^T y and has no part along them. */
static void DSG_NAME(test_circular_pinv_of_a_singular_blur)(void)
{
    dsg_shape shape = {.c = 2, .h = 3, .w = 8};
    dsg_blur_geometry g = {.kh = 1, .kw = 2, .border = DSG_BORDER_CIRCULAR};
    const double kernel[2] = {0.5, 0.5};
    size_t n = dsg_shape_size(shape);
    uint64_t seed = 5;
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_SPARSE) == DSG_OK);
    CHECK(op->class->data_step(op, &step) == DSG_OK);
    CHECK_NEAR(step->norm, 1.0, 4 * DSG_NAME(epsilon)());
    dsg_real *x = DSG_NAME(nan_array)(n), *y = DSG_NAME(random_array)(n, &seed);
    dsg_real *r = DSG_NAME(nan_array)(n), *back = DSG_NAME(nan_array)(n);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op) + step->workspace, 1);
    step->class->pinv(step, x, y, 1e-3, ws);
    DSG_NAME(dsg_op_forward)(op, r, x, ws);
    for (size_t i = 0; i < n; i++)
        r[i] -= y[i];
    DSG_NAME(dsg_op_vjp)(op, back, NULL, r, ws);
    /* |B| is 1, cos(pi / 8), .. down to cos(3 pi / 8) = 0.38, apart from the 0 */
    double tolerance = 8 * DSG_NAME(epsilon)() * (log2(24.0) + 3) * sqrt(24.0) / 0.38;
    for (size_t i = 0; i < n; i++)
        CHECK_NEAR(back[i], 0.0, tolerance);
    for (size_t row = 0; row < n; row += 8) {
        double alternating = 0.0;
        for (size_t j = 0; j < 8; j++)
            alternating += j % 2 ? -x[row + j] : x[row + j];
        CHECK_NEAR(alternating, 0.0, 8 * tolerance);
    }
    /* everything is at most the largest */
    step->class->pinv(step, x, y, 1.5, ws);
    for (size_t i = 0; i < n; i++)
        CHECK(x[i] == 0);
    dsg_free(ws);
    free(x);
    free(y);
    free(r);
    free(back);
    step->class->destroy(step);
    DSG_NAME(dsg_op_destroy)(op);
}

/* Whatever A does not see comes from v, for a rho too small for a float too. */
static void DSG_NAME(test_circular_step_of_no_blur_at_all)(void)
{
    dsg_shape shape = {.c = 1, .h = 5, .w = 6};
    dsg_blur_geometry g = {.kh = 2, .kw = 2, .border = DSG_BORDER_CIRCULAR};
    const double kernel[4] = {0};
    size_t n = dsg_shape_size(shape);
    uint64_t seed = 6;
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_AUTO) == DSG_OK);
    CHECK(op->class->data_step(op, &step) == DSG_OK);
    CHECK(step->norm == 0.0);
    dsg_real *x = DSG_NAME(nan_array)(n), *v = DSG_NAME(random_array)(n, &seed);
    dsg_real *y = DSG_NAME(random_array)(n, &seed);
    void *ws = dsg_alloc(step->workspace, 1);
    static const double rhos[] = {1e-60, 1.0};
    for (size_t k = 0; k < 2; k++) {
        step->class->prox(step, x, v, y, rhos[k], ws);
        for (size_t i = 0; i < n; i++)
            CHECK_NEAR(x[i], v[i], 8 * DSG_NAME(epsilon)() * sqrt((double)n));
    }
    step->class->pinv(step, x, y, 0.0, ws);
    for (size_t i = 0; i < n; i++)
        CHECK(x[i] == 0);
    dsg_free(ws);
    free(x);
    free(v);
    free(y);
    step->class->destroy(step);
    DSG_NAME(dsg_op_destroy)(op);
}

/* Which closed form a blur offers: the circular one comes first, the separable one
 * serves any border and growth, and nothing is left for the rest. */
static void DSG_NAME(test_blur_offers_the_form_that_fits)(void)
{
    dsg_shape shape = {.c = 2, .h = 7, .w = 9}, wide = {1, 2, 2049};
    double dense[9], product[9];
    uint64_t seed = 7;
    const DSG_NAME(dsg_data_step_class) *circular = NULL;
    dsg_blur_geometry g = {3, 3, 1, 1, 0, 0, DSG_BORDER_CIRCULAR};
    DSG_NAME(random_kernel)(dense, &g, false, &seed);
    DSG_NAME(random_kernel)(product, &g, true, &seed);
    for (int border = 0; border <= DSG_BORDER_REPLICATE; border++)
        for (size_t grow = 0; grow < 2; grow++)
            for (int rank_one = 0; rank_one < 2; rank_one++) {
                DSG_NAME(dsg_op) *op = NULL;
                DSG_NAME(dsg_data_step) *step = NULL;
                g.border = (dsg_border)border;
                g.grow_h = grow;
                CHECK(DSG_NAME(dsg_blur_create)(&op, shape, rank_one ? product : dense,
                                                &g, DSG_BLUR_AUTO) == DSG_OK);
                CHECK(op->class->data_step(op, &step) == DSG_OK);
                bool cyclic = g.border == DSG_BORDER_CIRCULAR && grow == 0;
                CHECK((step != NULL) == (cyclic || rank_one));
                if (step && cyclic) {
                    CHECK(circular == NULL || step->class == circular);
                    circular = step->class;
                }
                if (step && !cyclic)
                    CHECK(step->class != circular || circular == NULL);
                if (step)
                    step->class->destroy(step);
                DSG_NAME(dsg_op_destroy)(op);
            }

    /* too long a side for its singular values */
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    g = (dsg_blur_geometry){.kh = 1, .kw = 3, .centre_column = 1};
    CHECK(DSG_NAME(dsg_blur_create)(&op, wide, product, &g, DSG_BLUR_SEPARABLE) ==
          DSG_OK);
    CHECK(op->class->data_step(op, &step) == DSG_OK);
    CHECK(step == NULL);
    DSG_NAME(dsg_op_destroy)(op);
}

/* The two matrices a separable blur hands over, every border, centre and growth. */
static void DSG_NAME(test_separable_prox_solves_the_normal_equations)(void)
{
    static const struct {
        dsg_shape shape;
        dsg_blur_geometry g;
    } cases[] = {
        {{1, 1, 1}, {1, 1, 0, 0, 0, 0, DSG_BORDER_REFLECT}},
        {{2, 6, 5}, {4, 3, 2, 1, 1, 0, DSG_BORDER_REFLECT}},
        {{1, 7, 8}, {5, 6, 0, 5, 0, 2, DSG_BORDER_REFLECT}},
        {{3, 4, 3}, {3, 4, 1, 2, 1, 1, DSG_BORDER_CIRCULAR}},
        {{1, 3, 5}, {9, 14, 8, 3, 2, 0, DSG_BORDER_CIRCULAR}},
        {{2, 5, 4}, {4, 4, 1, 1, 0, 0, DSG_BORDER_ZERO}},
        {{1, 3, 7}, {7, 3, 0, 2, 2, 3, DSG_BORDER_ZERO}},
        {{1, 6, 5}, {3, 4, 2, 0, 0, 1, DSG_BORDER_REPLICATE}},
        {{2, 2, 3}, {8, 9, 3, 8, 1, 0, DSG_BORDER_REPLICATE}},
    };
    uint64_t seed = 8;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        double kernel[256];
        DSG_NAME(random_kernel)(kernel, &cases[k].g, true, &seed);
        DSG_NAME(dsg_op) *op = NULL;
        DSG_NAME(dsg_data_step) *step = NULL;
        CHECK(DSG_NAME(dsg_blur_create)(&op, cases[k].shape, kernel, &cases[k].g,
                                        DSG_BLUR_SEPARABLE) == DSG_OK);
        CHECK(op->class->data_step(op, &step) == DSG_OK);
        CHECK(step != NULL);
        if (step) {
            DSG_NAME(check_prox)(step, 0.01, seed++);
            DSG_NAME(check_prox)(step, 2.0, seed++);
            step->class->destroy(step);
        }
        DSG_NAME(dsg_op_destroy)(op);
    }
}

static void DSG_NAME(test_data_step_errors)(void)
{
    dsg_shape shape = {.c = 2, .h = 6, .w = 10}, wide = {1, 1, (size_t)1 << 33};
    double kernel[9];
    uint64_t seed = 9;
    dsg_blur_geometry g = {3, 3, 1, 1, 0, 0, DSG_BORDER_CIRCULAR};
    DSG_NAME(dsg_op) *op = NULL;
    DSG_NAME(dsg_data_step) *step = NULL;
    for (int rank_one = 0; rank_one < 2; rank_one++)
        for (size_t grow = 0; grow < 2; grow++) {
            DSG_NAME(random_kernel)(kernel, &g, rank_one, &seed);
            g.grow_w = grow;
            CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_AUTO) ==
                  DSG_OK);
            CHECK(op->class->data_step(op, &step) == DSG_OK); /* caches its plan */
            if (step)
                step->class->destroy(step);
            size_t live = dsg_alloc_live();
            CHECK_ALLOCATION_FAILURES(op->class->data_step(op, &step));
            if (step)
                step->class->destroy(step);
            CHECK(dsg_alloc_live() == live);
            DSG_NAME(dsg_op_destroy)(op);
        }
    g.grow_w = 0;
    CHECK(DSG_NAME(dsg_blur_create)(&op, wide, kernel, &g, DSG_BLUR_AUTO) == DSG_OK);
    CHECK(op->class->data_step(op, &step) == DSG_ESHAPE);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_circular_all)(void)
{
    DSG_NAME(test_circular_prox_solves_the_normal_equations)();
    DSG_NAME(test_circular_pinv_of_a_singular_blur)();
    DSG_NAME(test_circular_step_of_no_blur_at_all)();
    DSG_NAME(test_blur_offers_the_form_that_fits)();
    DSG_NAME(test_separable_prox_solves_the_normal_equations)();
    DSG_NAME(test_data_step_errors)();
}
