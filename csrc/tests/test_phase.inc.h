/* All five functions against the definition, in double. */
static void DSG_NAME(test_one_phase)(dsg_shape shape, size_t pad, double scale,
                                     double shift, uint64_t seed)
{
    size_t h = shape.h, w = shape.w, height = h + 2 * pad, width = w + 2 * pad;
    size_t in = h * w, out = height * width, n = shape.c * in, m = shape.c * out;
    size_t live = dsg_alloc_live();
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, pad, scale, shift) == DSG_OK);
    CHECK(op->in.c == shape.c && op->in.h == h && op->in.w == w);
    CHECK(op->out.c == shape.c && op->out.h == height && op->out.w == width);
    CHECK(!op->class->linear);
    size_t kept = dsg_alloc_live(); /* with the plans, which stay */

    dsg_real *x = DSG_NAME(random_array)(n, &seed),
             *a = DSG_NAME(random_array)(n, &seed);
    dsg_real *v = DSG_NAME(random_array)(m, &seed);
    dsg_real *y = DSG_NAME(nan_array)(m), *t = DSG_NAME(nan_array)(m);
    dsg_real *g = DSG_NAME(nan_array)(n), *bent = DSG_NAME(nan_array)(n);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    memset(ws, 0xff, DSG_NAME(dsg_op_workspace)(op)); /* NaN */
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    DSG_NAME(dsg_op_vjp)(op, g, x, v, ws);
    DSG_NAME(dsg_op_jvp)(op, t, x, a, ws);
    DSG_NAME(dsg_op_curvature)(op, bent, x, v, a, ws);

    double error = transform_error(out, DSG_NAME(epsilon)(), fabs(scale) + fabs(shift));
    double complex *z = malloc(out * sizeof *z), *fa = malloc(out * sizeof *fa);
    double complex *q = malloc(out * sizeof *q);
    double *u = malloc(in * sizeof *u), *want = malloc(in * sizeof *want);
    double worst = 0.0, worst_error = 0.0;
    for (size_t c = 0; c < shape.c; c++) {
        for (size_t i = 0; i < in; i++)
            u[i] = scale * x[c * in + i] + shift;
        ref_transform(z, u, h, w, pad);
        for (size_t i = 0; i < in; i++)
            u[i] = scale * a[c * in + i];
        ref_transform(fa, u, h, w, pad);
        /* an error of z turns u by error / |z|; those of different k add in squares */
        double square = 0.0, square2 = 0.0;
        for (size_t k = 0; k < out; k++) {
            double size = cabs(z[k]), tangent = (1 + cabs(fa[k]) / size) / size;
            square += 1 / (size * size) / (double)out;
            square2 += tangent * tangent / (double)out;
        }
        double turned = error * (1 + sqrt(square)),
               turned2 = error * (1 + sqrt(square2));
        worst_error = turned > worst_error ? turned : worst_error;

        for (size_t k = 0; k < out; k++) {
            double d = fabs(cabs(z[k]) - y[c * out + k]);
            worst = d <= worst ? worst : d;
        }
        CHECK_NEAR(worst, 0.0, error);
        worst = 0.0;
        for (size_t k = 0; k < out; k++) {
            double d = fabs(creal(conj(z[k]) * fa[k]) / cabs(z[k]) - t[c * out + k]);
            d -= error * cabs(fa[k]) / cabs(z[k]);
            worst = d <= worst ? worst : d;
        }
        CHECK_NEAR(worst, 0.0, error);

        worst = 0.0;
        for (size_t k = 0; k < out; k++)
            q[k] = v[c * out + k] * z[k] / cabs(z[k]);
        ref_transform_back(want, q, h, w, pad, scale);
        for (size_t i = 0; i < in; i++) {
            double d = fabs(want[i] - g[c * in + i]);
            worst = d <= worst ? worst : d;
        }
        CHECK_NEAR(worst, 0.0, 2 * turned);

        worst = 0.0;
        for (size_t k = 0; k < out; k++) {
            double complex unit = z[k] / cabs(z[k]);
            q[k] = v[c * out + k] / cabs(z[k]) *
                   (fa[k] - unit * creal(conj(unit) * fa[k]));
        }
        ref_transform_back(want, q, h, w, pad, scale);
        for (size_t i = 0; i < in; i++) {
            double d = fabs(want[i] - bent[c * in + i]);
            worst = d <= worst ? worst : d;
        }
        CHECK_NEAR(worst, 0.0, 4 * turned2);
        worst = 0.0;
    }
    DSG_NAME(check_adjoint)(op, error * (1 + fabs(scale)), seed);
    DSG_NAME(check_batch)(op, seed + 1);
    DSG_NAME(check_derivatives)(op, x, 4 * worst_error, seed + 2);

    dsg_free(ws);
    free(x);
    free(a);
    free(v);
    free(y);
    free(t);
    free(g);
    free(bent);
    free(z);
    free(fa);
    free(q);
    free(u);
    free(want);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == kept - 1 && kept >= live);
}

/* Scaled to [0, 1], -1 is exactly 0, and so are z and everything made of z / |z|; the
 * other channel does not notice. */
static void DSG_NAME(test_zero_field_has_no_derivative)(void)
{
    enum { IN = 7 * 6, OUT = 13 * 12 };
    dsg_shape shape = {.c = 2, .h = 7, .w = 6};
    uint64_t seed = 8;
    dsg_real *x = DSG_NAME(random_array)(2 * IN, &seed);
    dsg_real *v = DSG_NAME(random_array)(2 * OUT, &seed);
    dsg_real *y = DSG_NAME(nan_array)(2 * OUT), *g = DSG_NAME(nan_array)(2 * IN);
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 3, 0.5, 0.5) == DSG_OK);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    for (size_t i = 0; i < IN; i++)
        x[i] = -1;
    double norm = DSG_NAME(dot)(v, v, OUT);
    for (int what = 0; what < 5; what++) {
        double sqnorm = 0.0;
        if (what == 0)
            DSG_NAME(dsg_op_forward)(op, y, x, ws);
        else if (what == 1)
            DSG_NAME(dsg_op_jvp)(op, y, x, x, ws);
        else if (what == 2)
            DSG_NAME(dsg_op_vjp)(op, g, x, v, ws);
        else if (what == 3)
            DSG_NAME(dsg_op_curvature)(op, g, x, v, x, ws);
        else
            sqnorm = DSG_NAME(dsg_op_residual_gradient)(op, g, x, v, ws);
        const dsg_real *result = what < 2 ? y : g;
        size_t n = what < 2 ? OUT : IN, wrong = 0;
        for (size_t i = 0; i < n; i++) {
            wrong += result[i] != 0;
            wrong += !isfinite(result[n + i]) || result[n + i] == 0;
        }
        CHECK(wrong == 0);
        CHECK(what < 4 || sqnorm > norm);
    }
    dsg_free(ws);
    free(x);
    free(v);
    free(y);
    free(g);
    DSG_NAME(dsg_op_destroy)(op);
}

/* A NaN reaches all of its channel, in every result, and nothing else. */
static void DSG_NAME(test_nan_stays_in_its_channel)(void)
{
    enum { IN = 5 * 4, OUT = 9 * 8 };
    dsg_shape shape = {.c = 2, .h = 5, .w = 4};
    uint64_t seed = 9;
    dsg_real *x = DSG_NAME(random_array)(2 * IN, &seed);
    dsg_real *v = DSG_NAME(random_array)(2 * OUT, &seed);
    dsg_real *y = DSG_NAME(random_array)(2 * OUT, &seed);
    dsg_real *g = DSG_NAME(random_array)(2 * IN, &seed);
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 2, 1.0, 0.0) == DSG_OK);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    x[7] = (dsg_real)NAN;
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    DSG_NAME(dsg_op_vjp)(op, g, x, v, ws);
    size_t wrong = 0;
    for (size_t i = 0; i < OUT; i++)
        wrong += !isnan(y[i]) || isnan(y[OUT + i]);
    for (size_t i = 0; i < IN; i++)
        wrong += !isnan(g[i]) || isnan(g[IN + i]);
    CHECK(isnan(DSG_NAME(dsg_op_residual_gradient)(op, g, x, v, ws)));
    for (size_t i = 0; i < IN; i++)
        wrong += !isnan(g[i]) || isnan(g[IN + i]);
    CHECK(wrong == 0);
    dsg_free(ws);
    free(x);
    free(v);
    free(y);
    free(g);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_phase_errors)(void)
{
    dsg_shape shape = {.c = 2, .h = 101, .w = 103}, s; /* lengths not planned yet */
    DSG_NAME(dsg_op) *op = NULL;
    s = shape, s.c = 0;
    CHECK(DSG_NAME(dsg_phase_create)(&op, s, 4, 1, 0) == DSG_ESHAPE);
    s = shape, s.h = 0;
    CHECK(DSG_NAME(dsg_phase_create)(&op, s, 4, 1, 0) == DSG_ESHAPE);
    s = shape, s.w = 0;
    CHECK(DSG_NAME(dsg_phase_create)(&op, s, 4, 1, 0) == DSG_ESHAPE);
    s = shape, s.h = SIZE_MAX / 40;
    CHECK(DSG_NAME(dsg_phase_create)(&op, s, 4, 1, 0) == DSG_ESHAPE);
    s = (dsg_shape){.c = 1, .h = 1, .w = (size_t)1 << 31};
    CHECK(DSG_NAME(dsg_phase_create)(&op, s, 0, 1, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, SIZE_MAX, 1, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, SIZE_MAX / 2, 1, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, (size_t)1 << 31, 1, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 4, NAN, 0) == DSG_EVALUE);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 4, 1, INFINITY) == DSG_EVALUE);
    CHECK(op == NULL);
    /* a plan made before a later allocation fails stays in the cache: only that may be
     * left, and with the plans made nothing is */
    dsg_fail_alloc_after(1);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 4, 1, 0) == DSG_ENOMEM);
    dsg_fail_alloc_after(5);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 4, 1, 0) == DSG_ENOMEM);
    dsg_fail_alloc_after(0);
    CHECK(op == NULL);
    CHECK(DSG_NAME(dsg_phase_create)(&op, shape, 4, 1, 0) == DSG_OK);
    DSG_NAME(dsg_op_destroy)(op);
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_phase_create)(&op, shape, 4, 1, 0));
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_phase_all)(void)
{
    static const dsg_shape shapes[] = {
        {1, 1, 1},   {2, 1, 2},  {1, 2, 1},   {7, 3, 5},   {3, 8, 16},
        {2, 17, 13}, {1, 4, 37}, {1, 32, 31}, {1, 16, 48}, {2, 6, 15}};
    static const size_t pads[] = {0, 1, 2, 5};
    static const double scales[][2] = {{1.0, 0.0}, {0.5, 0.5}, {-0.75, 0.25}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t k = 0; k < sizeof pads / sizeof *pads; k++) {
            const double *s = scales[(i + k) % 3];
            DSG_NAME(test_one_phase)(shapes[i], pads[k], s[0], s[1], 10 * i + k);
        }
    DSG_NAME(test_zero_field_has_no_derivative)();
    DSG_NAME(test_nan_stays_in_its_channel)();
    DSG_NAME(test_phase_errors)();
}
