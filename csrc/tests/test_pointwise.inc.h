/* Both precisions against the definition, relative to the size of what is computed;
 * some of x far outside [-1, 1] and some on or just beside the straight part. */
static void DSG_NAME(test_one_pointwise)(dsg_shape shape, dsg_pointwise_kind kind,
                                         double a, uint64_t seed)
{
    size_t n = dsg_shape_size(shape), live = dsg_alloc_live();
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, kind, a) == DSG_OK);
    CHECK(op->in.c == shape.c && op->in.h == shape.h && op->in.w == shape.w);
    CHECK(op->out.c == shape.c && op->out.h == shape.h && op->out.w == shape.w);
    CHECK(!op->class->linear);

    dsg_real *x = DSG_NAME(random_array)(n, &seed),
             *v = DSG_NAME(random_array)(n, &seed);
    dsg_real *w = DSG_NAME(random_array)(n, &seed), *y = DSG_NAME(nan_array)(n);
    dsg_real *g = DSG_NAME(nan_array)(n), *t = DSG_NAME(nan_array)(n);
    dsg_real *h = DSG_NAME(nan_array)(n);
    for (size_t i = 0; i < n; i++) {
        if (i % 5 == 1)
            x[i] *= 3;
        if (i % 5 == 2)
            x[i] = (dsg_real)(-1 + 3e-4 * x[i]);
    }
    DSG_NAME(dsg_op_forward)(op, y, x, NULL);
    DSG_NAME(dsg_op_vjp)(op, g, x, v, NULL);
    DSG_NAME(dsg_op_jvp)(op, t, x, w, NULL);
    DSG_NAME(dsg_op_curvature)(op, h, x, v, w, NULL);
    /* a power p of u: p and u are off by an epsilon each, which makes p + |log u| in
     * the result, log u >= log 1e-4; then some five operations */
    double tolerance = (a + 1 / a) * 16 * DSG_NAME(epsilon)(), worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        double want[3];
        ref_pointwise(want, kind, a, x[i]);
        double d[4] = {fabs(y[i] - want[0]) / (2 + fabs(want[0])),
                       fabs(g[i] - want[1] * v[i]) / (fabs(want[1]) + DBL_MIN),
                       fabs(t[i] - want[1] * w[i]) / (fabs(want[1]) + DBL_MIN),
                       fabs(h[i] - want[2] * v[i] * w[i]) / (fabs(want[2]) + DBL_MIN)};
        for (size_t k = 0; k < 4; k++)
            worst = d[k] <= worst ? worst : d[k];
    }
    CHECK_NEAR(worst, 0.0, tolerance);

    /* f' of x in [-1, 1] is a for clip, else at most the slope at 0 or at 1 */
    double steepest[3], end[3], kink;
    ref_pointwise(steepest, kind, a, -1);
    ref_pointwise(end, kind, a, 1);
    steepest[1] = fmax(fmax(steepest[1], end[1]), a);
    double error = tolerance * (4 + steepest[1]);
    DSG_NAME(check_adjoint)(op, error, seed);
    DSG_NAME(check_batch)(op, seed + 1);
    /* where f' jumps there is nothing to compare */
    kink = kind == DSG_POINTWISE_DECODE ? pow(1e-4, 1 / a) : 1e-4;
    for (size_t i = 0; i < n; i++) {
        double from = kind == DSG_POINTWISE_CLIP ? fabs(fabs(a * x[i]) - 1) / a
                                                 : fabs(fabs((x[i] + 1) / 2) - kink);
        if (from < 1e-4)
            x[i] = 0;
    }
    DSG_NAME(check_derivatives)(op, x, error, seed + 2);

    free(x);
    free(v);
    free(w);
    free(y);
    free(g);
    free(t);
    free(h);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

/* Exact, at the ends too: their own derivative is still a, the next number's is 0. */
static void DSG_NAME(test_clip_includes_its_ends)(void)
{
    const dsg_real half = (dsg_real)0.5, nan = (dsg_real)NAN, inf = (dsg_real)INFINITY;
    const dsg_real past = half + (dsg_real)DSG_NAME(epsilon)();
    dsg_real x[8] = {half, -half, past, -past, 0, nan, inf, -inf};
    dsg_real v[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[8], g[8];
    static const dsg_real want_y[8] = {1, -1, 1, -1, 0, 0, 1, -1};
    static const dsg_real want_g[8] = {2, 4, 0, 0, 10, 0, 0, 0};
    DSG_NAME(dsg_op) *op = NULL;
    dsg_shape shape = {.c = 2, .h = 2, .w = 2};
    CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, DSG_POINTWISE_CLIP, 2) == DSG_OK);
    DSG_NAME(dsg_op_forward)(op, y, x, NULL);
    DSG_NAME(dsg_op_vjp)(op, g, x, v, NULL);
    for (size_t i = 0; i < 8; i++) {
        CHECK(i == 5 ? isnan(y[i]) : y[i] == want_y[i]);
        CHECK(g[i] == want_g[i]);
    }
    double sqnorm = DSG_NAME(dsg_op_residual_gradient)(op, g, x, v, NULL);
    CHECK(isnan(sqnorm));
    CHECK(g[0] == 0 && g[1] == -6 && g[2] == 0 && g[3] == 0 && g[4] == -10);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_decode_undoes_encode)(void)
{
    enum { N = 1001 };
    dsg_shape shape = {.c = 1, .h = 1, .w = N};
    DSG_NAME(dsg_op) *encode = NULL, *decode = NULL;
    CHECK(DSG_NAME(dsg_pointwise_create)(&encode, shape, DSG_POINTWISE_ENCODE, 2.2) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_pointwise_create)(&decode, shape, DSG_POINTWISE_DECODE, 2.2) ==
          DSG_OK);
    dsg_real x[N], y[N], back[N];
    for (size_t i = 0; i < N; i++)
        x[i] = (dsg_real)((double)i / (N - 1) * 2 - 1);
    DSG_NAME(dsg_op_forward)(encode, y, x, NULL);
    DSG_NAME(dsg_op_forward)(decode, back, y, NULL);
    double worst = 0.0;
    for (size_t i = 0; i < N; i++) {
        double d = fabs((double)back[i] - x[i]);
        worst = d <= worst ? worst : d;
        CHECK(i == 0 || y[i] > y[i - 1]); /* rises */
    }
    /* y is off by a few epsilon, and decode is nowhere steeper than 2.2 */
    CHECK_NEAR(worst, 0.0, 16 * DSG_NAME(epsilon)());
    CHECK(y[0] == -1 && y[N - 1] == 1);

    /* NaN comes through, in values and derivatives */
    x[3] = (dsg_real)NAN;
    DSG_NAME(dsg_op_forward)(encode, y, x, NULL);
    CHECK(isnan(y[3]));
    DSG_NAME(dsg_op_vjp)(encode, back, x, y, NULL);
    CHECK(isnan(back[3]) && !isnan(back[4]));
    DSG_NAME(dsg_op_destroy)(encode);
    DSG_NAME(dsg_op_destroy)(decode);
}

static void DSG_NAME(test_pointwise_errors)(void)
{
    static const double bad[] = {0.0, -2.0, NAN, INFINITY, -INFINITY};
    dsg_shape shape = {.c = 3, .h = 4, .w = 5}, s;
    DSG_NAME(dsg_op) *op = NULL;
    for (int kind = DSG_POINTWISE_CLIP; kind <= DSG_POINTWISE_DECODE; kind++) {
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
            CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, kind, bad[i]) ==
                  DSG_EVALUE);
        s = shape, s.c = 0;
        CHECK(DSG_NAME(dsg_pointwise_create)(&op, s, kind, 2) == DSG_ESHAPE);
        s = shape, s.h = 0;
        CHECK(DSG_NAME(dsg_pointwise_create)(&op, s, kind, 2) == DSG_ESHAPE);
        s = shape, s.w = 0;
        CHECK(DSG_NAME(dsg_pointwise_create)(&op, s, kind, 2) == DSG_ESHAPE);
        s = shape, s.w = SIZE_MAX / 8;
        CHECK(DSG_NAME(dsg_pointwise_create)(&op, s, kind, 2) == DSG_ESHAPE);
    }
    CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, (dsg_pointwise_kind)3, 2) ==
          DSG_EVALUE);
    /* 1e-4 to the power of 1000 is 0, and its slope at 0 infinite the other way round
     */
    CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, DSG_POINTWISE_ENCODE, 1e-3) ==
          DSG_EVALUE);
    CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, DSG_POINTWISE_DECODE, 1e-3) ==
          DSG_EVALUE);
    if (sizeof(dsg_real) == sizeof(float)) {
        CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, DSG_POINTWISE_CLIP, 1e60) ==
              DSG_EVALUE);
        CHECK(DSG_NAME(dsg_pointwise_create)(&op, shape, DSG_POINTWISE_CLIP, 1e-60) ==
              DSG_EVALUE);
    }
    CHECK(op == NULL);
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(
        DSG_NAME(dsg_pointwise_create)(&op, shape, DSG_POINTWISE_CLIP, 2));
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_pointwise_all)(void)
{
    static const dsg_shape shapes[] = {{1, 1, 1},  {2, 1, 2},   {3, 2, 1},  {7, 3, 5},
                                       {3, 8, 16}, {2, 17, 13}, {1, 33, 31}};
    static const double as[] = {2.0, 1.0, 2.2, 0.6};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = DSG_POINTWISE_CLIP; kind <= DSG_POINTWISE_DECODE; kind++)
            for (size_t k = 0; k < sizeof as / sizeof *as; k++)
                DSG_NAME(test_one_pointwise)(shapes[i], kind, as[k], 100 * i + k);
    DSG_NAME(test_clip_includes_its_ends)();
    DSG_NAME(test_decode_undoes_encode)();
    DSG_NAME(test_pointwise_errors)();
}
