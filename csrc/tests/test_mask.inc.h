static void DSG_NAME(test_one_mask)(dsg_shape shape, size_t channels, uint64_t seed)
{
    size_t plane = shape.h * shape.w, n = shape.c * plane;
    size_t live = dsg_alloc_live();
    unsigned char *mask = malloc(channels * plane);
    for (size_t i = 0; i < channels * plane; i++)
        mask[i] = utest_random(&seed) > 0.2;
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, channels) == DSG_OK);
    CHECK(op->in.c == shape.c && op->in.h == shape.h && op->in.w == shape.w);
    CHECK(op->out.c == shape.c && op->out.h == shape.h && op->out.w == shape.w);
    CHECK(op->class->linear);

    dsg_real *x = DSG_NAME(random_array)(n, &seed), *y = DSG_NAME(nan_array)(n);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        dsg_real want = mask[channels == 1 ? i % plane : i] ? x[i] : 0;
        wrong += !(y[i] == want);
    }
    CHECK(wrong == 0);

    /* M M = M, bit for bit */
    dsg_real *again = DSG_NAME(nan_array)(n);
    DSG_NAME(dsg_op_forward)(op, again, y, ws);
    CHECK(memcmp(y, again, n * sizeof *y) == 0);

    /* exact but for the order of the sums of the test */
    DSG_NAME(check_operator)(op, DSG_NAME(epsilon)(), seed);

    dsg_free(ws);
    free(x);
    free(y);
    free(again);
    free(mask);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_masked_nan_stays_behind_the_mask)(void)
{
    static const unsigned char mask[4] = {1, 0, 1, 0};
    dsg_shape shape = {.c = 1, .h = 2, .w = 2};
    dsg_real x[4] = {1, (dsg_real)NAN, 3, (dsg_real)INFINITY};
    dsg_real y[4] = {(dsg_real)0.5, 0, 5, 2}, g[4], out[4];
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, 1) == DSG_OK);
    DSG_NAME(dsg_op_forward)(op, out, x, NULL);
    CHECK(out[0] == 1 && out[1] == 0 && out[2] == 3 && out[3] == 0);

    /* masked entries of y count in the norm and nowhere else */
    double sqnorm = DSG_NAME(dsg_op_residual_gradient)(op, g, x, y, NULL);
    CHECK(g[0] == (dsg_real)0.5 && g[1] == 0 && g[2] == -2 && g[3] == 0);
    CHECK_NEAR(sqnorm, 0.25 + 4.0 + 4.0, 0.0);
    y[1] = (dsg_real)NAN;
    DSG_NAME(dsg_op_residual_gradient)(op, g, x, y, NULL);
    CHECK(g[0] == (dsg_real)0.5 && g[1] == 0 && g[2] == -2 && g[3] == 0);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_mask_errors)(void)
{
    unsigned char mask[12] = {0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0};
    dsg_shape shape = {.c = 3, .h = 2, .w = 2}, s;
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, 2) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, 4) == DSG_ESHAPE);
    s = shape, s.c = 0;
    CHECK(DSG_NAME(dsg_mask_create)(&op, s, mask, 1) == DSG_ESHAPE);
    s = shape, s.h = 0;
    CHECK(DSG_NAME(dsg_mask_create)(&op, s, mask, 1) == DSG_ESHAPE);
    s = shape, s.w = 0;
    CHECK(DSG_NAME(dsg_mask_create)(&op, s, mask, 1) == DSG_ESHAPE);
    s = shape, s.w = SIZE_MAX / 2;
    CHECK(DSG_NAME(dsg_mask_create)(&op, s, mask, 1) == DSG_ESHAPE);
    s = shape, s.w = SIZE_MAX / 12 / sizeof(dsg_real);
    CHECK(DSG_NAME(dsg_mask_create)(&op, s, mask, 1) == DSG_ESHAPE);
    mask[11] = 2;
    CHECK(DSG_NAME(dsg_mask_create)(&op, shape, mask, 3) == DSG_EVALUE);
    CHECK(op == NULL);
    mask[11] = 0;
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_mask_create)(&op, shape, mask, 3));
    DSG_NAME(dsg_op_destroy)(op);
    DSG_NAME(dsg_op_destroy)(NULL);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_mask_all)(void)
{
    static const dsg_shape shapes[] = {{1, 1, 1},   {2, 1, 2},  {3, 2, 1},
                                       {7, 3, 5},   {3, 8, 16}, {2, 17, 13},
                                       {1, 33, 31}, {3, 40, 64}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        DSG_NAME(test_one_mask)(shapes[i], 1, 10 + i);
        DSG_NAME(test_one_mask)(shapes[i], shapes[i].c, 20 + i);
    }
    DSG_NAME(test_masked_nan_stays_behind_the_mask)();
    DSG_NAME(test_mask_errors)();
}
