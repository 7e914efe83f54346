static void DSG_NAME(test_one_resize)(dsg_shape shape, size_t f, uint64_t seed)
{
    size_t h = shape.h, w = shape.w, live = dsg_alloc_live();
    size_t oh = (h + f - 1) / f, ow = (w + f - 1) / f;
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, f) == DSG_OK);
    CHECK(op->in.c == shape.c && op->in.h == h && op->in.w == w);
    CHECK(op->out.c == shape.c && op->out.h == oh && op->out.w == ow);

    dsg_real *x = DSG_NAME(random_array)(shape.c * h * w, &seed);
    dsg_real *y = DSG_NAME(nan_array)(shape.c * oh * ow);
    double *down = calloc(oh * h, sizeof *down), *across = calloc(ow * w, sizeof *down);
    double *wide = malloc(oh * w * sizeof *wide);
    ref_resize_matrix(down, h, f);
    ref_resize_matrix(across, w, f);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);

    /* the weights of an axis sum to 1 and their absolute values to < 1.5: two sums of
     * 4 f + 2 terms each */
    double tolerance = 4 * DSG_NAME(epsilon)() * 2.25 * (double)(4 * f + 2);
    double worst = 0.0;
    for (size_t c = 0; c < shape.c; c++) {
        for (size_t o = 0; o < oh; o++)
            for (size_t j = 0; j < w; j++) {
                wide[o * w + j] = 0.0;
                for (size_t i = 0; i < h; i++)
                    wide[o * w + j] += down[o * h + i] * x[(c * h + i) * w + j];
            }
        for (size_t o = 0; o < oh; o++)
            for (size_t p = 0; p < ow; p++) {
                double want = 0.0;
                for (size_t j = 0; j < w; j++)
                    want += across[p * w + j] * wide[o * w + j];
                double d = fabs(want - y[(c * oh + o) * ow + p]);
                worst = d <= worst ? worst : d;
            }
    }
    CHECK_NEAR(worst, 0.0, tolerance);
    DSG_NAME(check_operator)(op, tolerance, seed);

    dsg_free(ws);
    free(x);
    free(y);
    free(down);
    free(across);
    free(wide);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

/* Factor 4 where it divides: the 16 dyadic weights of the published tables. */
static void DSG_NAME(test_factor_four_has_the_known_weights)(void)
{
    static const double weight[16] = {-7,  -45, -75, -49, 93,  399, 745, 987,
                                      987, 745, 399, 93,  -49, -75, -45, -7};
    dsg_shape shape = {.c = 1, .h = 1, .w = 64};
    dsg_real x[64] = {0}, y[16];
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 4) == DSG_OK);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    for (size_t t = 0; t < 16; t++) {
        x[32 - 6 + t] = 1;
        DSG_NAME(dsg_op_forward)(op, y, x, ws);
        CHECK_NEAR(y[8], weight[t] / 4096.0, 4 * DSG_NAME(epsilon)());
        x[32 - 6 + t] = 0;
    }
    dsg_free(ws);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_factor_one_is_the_identity)(void)
{
    dsg_shape shape = {.c = 2, .h = 5, .w = 9};
    uint64_t seed = 5;
    dsg_real *x = DSG_NAME(random_array)(90, &seed), *y = DSG_NAME(nan_array)(90);
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 1) == DSG_OK);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    CHECK(memcmp(x, y, 90 * sizeof *x) == 0);
    DSG_NAME(dsg_op_vjp)(op, y, NULL, x, ws);
    CHECK(memcmp(x, y, 90 * sizeof *x) == 0);
    dsg_free(ws);
    free(x);
    free(y);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_resize_errors)(void)
{
    dsg_shape shape = {.c = 3, .h = 20, .w = 21}, s;
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 0) == DSG_EVALUE);
    s = shape, s.c = 0;
    CHECK(DSG_NAME(dsg_resize_create)(&op, s, 4) == DSG_ESHAPE);
    s = shape, s.h = 0;
    CHECK(DSG_NAME(dsg_resize_create)(&op, s, 4) == DSG_ESHAPE);
    s = shape, s.w = 0;
    CHECK(DSG_NAME(dsg_resize_create)(&op, s, 4) == DSG_ESHAPE);
    s = shape, s.h = SIZE_MAX / 60;
    CHECK(DSG_NAME(dsg_resize_create)(&op, s, 4) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, SIZE_MAX) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, (size_t)1 << 40) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 16 * 21 + 1) == DSG_ESHAPE);
    CHECK(op == NULL);
    CHECK(DSG_NAME(dsg_resize_create)(&op, shape, 16 * 21) == DSG_OK);
    CHECK(op->out.h == 1 && op->out.w == 1);
    DSG_NAME(dsg_op_destroy)(op);
    op = NULL;
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_resize_create)(&op, shape, 4));
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_resize_all)(void)
{
    static const dsg_shape shapes[] = {
        {1, 1, 1},   {2, 1, 2},   {3, 2, 1},   {7, 3, 5},    {3, 8, 16},
        {3, 50, 37}, {2, 17, 13}, {1, 32, 31}, {1, 12, 300}, {1, 260, 66}};
    static const size_t factors[] = {1, 2, 3, 4, 5, 8, 13};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t k = 0; k < sizeof factors / sizeof *factors; k++)
            DSG_NAME(test_one_resize)(shapes[i], factors[k], 100 * i + k);
    DSG_NAME(test_factor_four_has_the_known_weights)();
    DSG_NAME(test_factor_one_is_the_identity)();
    DSG_NAME(test_resize_errors)();
}
