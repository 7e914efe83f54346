/* Checks of op_checks.h for one precision. */

static inline double DSG_NAME(epsilon)(void)
{
    return sizeof(dsg_real) == sizeof(float) ? FLT_EPSILON : DBL_EPSILON;
}

/* n numbers in [-1, 1), at least one allocated. */
static inline dsg_real *DSG_NAME(random_array)(size_t n, uint64_t *seed)
{
    dsg_real *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (dsg_real)utest_random(seed);
    return x;
}

static inline dsg_real *DSG_NAME(nan_array)(size_t n)
{
    dsg_real *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (dsg_real)NAN;
    return x;
}

static inline double DSG_NAME(dot)(const dsg_real *a, const dsg_real *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* error: a bound on the rounding of an entry of A(x), J(x) w or J(x)^T v, for entries
 * of x, w and v in [-1, 1], as the caller derives it.  What J(x) itself makes of the
 * rounding of x does not count: the results are compared at one and the same J(x). */
static inline void DSG_NAME(check_adjoint)(const DSG_NAME(dsg_op) *op, double error,
                                           uint64_t seed)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *x = DSG_NAME(random_array)(n, &seed), *y = DSG_NAME(nan_array)(m);
    dsg_real *w = DSG_NAME(random_array)(n, &seed), *t = DSG_NAME(nan_array)(m);
    dsg_real *v = DSG_NAME(random_array)(m, &seed), *g = DSG_NAME(nan_array)(n);
    const dsg_real *at = op->class->linear ? NULL : x;
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_jvp)(op, t, at, w, ws);
    DSG_NAME(dsg_op_vjp)(op, g, at, v, ws);
    /* both sums have terms of at most 1 with that error */
    CHECK_NEAR(DSG_NAME(dot)(t, v, m), DSG_NAME(dot)(w, g, n), error * (double)(n + m));
    dsg_real *r = DSG_NAME(random_array)(m, &seed), *h = DSG_NAME(nan_array)(n);
    DSG_NAME(dsg_op_curvature)(op, h, at, v, w, ws);
    size_t unset = 0, bent = 0;
    for (size_t i = 0; i < n; i++) {
        unset += isnan(h[i]) != 0;
        bent += h[i] != 0;
    }
    CHECK(unset == 0);
    if (op->class->linear) {
        CHECK(bent == 0);
        DSG_NAME(dsg_op_forward)(op, y, w, ws);
        CHECK(memcmp(y, t, m * sizeof *y) == 0);
    }

    /* r = A(x) - y and g = J^T r, from the parts */
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    double got = DSG_NAME(dsg_op_residual_gradient)(op, g, x, r, ws), want = 0.0;
    for (size_t i = 0; i < m; i++) {
        r[i] = y[i] - r[i];
        want += (double)r[i] * r[i];
    }
    DSG_NAME(dsg_op_vjp)(op, h, at, r, ws);
    /* the same m numbers summed in another order, in double */
    CHECK_NEAR(got, want, (double)m * DBL_EPSILON * (want + 1.0));
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)g[i] - h[i]);
        worst = d <= worst ? worst : d; /* a NaN gets in and stays */
    }
    CHECK_NEAR(worst, 0.0, 8 * error);
    dsg_free(ws);
    free(x);
    free(y);
    free(w);
    free(t);
    free(v);
    free(g);
    free(r);
    free(h);
}

/* Does nothing in float, where differences drown.
 *
 * With D(s) = (f(x + s w) - f(x - s w)) / 2 s, (4 D(s) - D(2 s)) / 3 is compared: what
 * is left of the truncation is far below D(2 s) - D(s), and of the rounding there are
 * (4 / 2 + 1 / 4) 2 / 3 = 1.5 errors over s.  error: as above, and including what J
 * makes of the rounding of x; x as the caller likes it, away from kinks. */
static inline void DSG_NAME(check_derivatives)(const DSG_NAME(dsg_op) *op,
                                               const dsg_real *x, double error,
                                               uint64_t seed)
{
    if (sizeof(dsg_real) != sizeof(double))
        return;
    enum { T, H, PLUS, MINUS, ARRAYS };
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    size_t longest = n > m ? n : m;
    dsg_real *w = DSG_NAME(random_array)(n, &seed),
             *v = DSG_NAME(random_array)(m, &seed);
    dsg_real *a[ARRAYS], *near = malloc(n * sizeof *near);
    double *d[2];
    for (size_t i = 0; i < ARRAYS; i++)
        a[i] = DSG_NAME(nan_array)(longest);
    for (size_t i = 0; i < 2; i++)
        d[i] = malloc(longest * sizeof **d);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_jvp)(op, a[T], x, w, ws);
    DSG_NAME(dsg_op_curvature)(op, a[H], x, v, w, ws);

    const double s = 0x1p-16;
    for (int what = T; what <= H; what++) {
        size_t length = what == T ? m : n;
        for (size_t k = 0; k < 2; k++) {
            double step = (double)(k + 1) * s;
            for (int side = PLUS; side <= MINUS; side++) {
                double sign = side == PLUS ? 1.0 : -1.0;
                for (size_t i = 0; i < n; i++)
                    near[i] = (dsg_real)(x[i] + sign * step * w[i]);
                if (what == T)
                    DSG_NAME(dsg_op_forward)(op, a[side], near, ws);
                else
                    DSG_NAME(dsg_op_vjp)(op, a[side], near, v, ws);
            }
            for (size_t i = 0; i < length; i++)
                d[k][i] = ((double)a[PLUS][i] - a[MINUS][i]) / (2 * step);
        }
        double worst = -INFINITY;
        for (size_t i = 0; i < length; i++) {
            double want = (4 * d[0][i] - d[1][i]) / 3;
            double over = fabs(a[what][i] - want) - fabs(d[1][i] - d[0][i]);
            worst = over <= worst ? worst : over; /* a NaN gets in and stays */
        }
        CHECK(worst <= 1.5 * error / s);
    }
    dsg_free(ws);
    for (size_t i = 0; i < ARRAYS; i++)
        free(a[i]);
    for (size_t i = 0; i < 2; i++)
        free(d[i]);
    free(near);
    free(w);
    free(v);
}

static inline void DSG_NAME(check_batch)(const DSG_NAME(dsg_op) *op, uint64_t seed)
{
    enum { BATCH = 3 };
    static const size_t threads[] = {1, 2, 5};
    bool linear = op->class->linear;
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *x = DSG_NAME(random_array)(BATCH * n, &seed);
    dsg_real *w = DSG_NAME(random_array)(BATCH * n, &seed);
    dsg_real *v = DSG_NAME(random_array)(BATCH * m, &seed);
    dsg_real *y = DSG_NAME(nan_array)(BATCH * m), *y1 = DSG_NAME(nan_array)(BATCH * m);
    dsg_real *j = DSG_NAME(nan_array)(BATCH * m), *j1 = DSG_NAME(nan_array)(BATCH * m);
    dsg_real *g = DSG_NAME(nan_array)(BATCH * n), *g1 = DSG_NAME(nan_array)(BATCH * n);
    dsg_real *d = DSG_NAME(nan_array)(BATCH * n), *d1 = DSG_NAME(nan_array)(BATCH * n);
    dsg_real *h = DSG_NAME(nan_array)(BATCH * n), *h1 = DSG_NAME(nan_array)(BATCH * n);
    double s[BATCH], s1[BATCH];
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    for (size_t i = 0; i < BATCH; i++) {
        const dsg_real *xi = x + i * n, *vi = v + i * m, *wi = w + i * n;
        DSG_NAME(dsg_op_forward)(op, y1 + i * m, xi, ws);
        DSG_NAME(dsg_op_vjp)(op, g1 + i * n, xi, vi, ws);
        DSG_NAME(dsg_op_jvp)(op, j1 + i * m, xi, wi, ws);
        DSG_NAME(dsg_op_curvature)(op, h1 + i * n, xi, vi, wi, ws);
        s1[i] = DSG_NAME(dsg_op_residual_gradient)(op, d1 + i * n, xi, vi, ws);
    }
    for (size_t b = 0; b <= BATCH; b += b ? 2 : 1) /* 0, 1, 3 */
        for (size_t t = 0; t < 3; t++) {
            const dsg_real *at = linear && b & 1 ? NULL : x;
            for (size_t i = 0; i < BATCH * m; i++)
                y[i] = j[i] = (dsg_real)NAN;
            for (size_t i = 0; i < BATCH * n; i++)
                g[i] = d[i] = h[i] = (dsg_real)NAN;
            dsg_set_num_threads(threads[t]);
            CHECK(DSG_NAME(dsg_op_forward_batch)(op, y, x, b) == DSG_OK);
            CHECK(DSG_NAME(dsg_op_vjp_batch)(op, g, at, v, b) == DSG_OK);
            CHECK(DSG_NAME(dsg_op_jvp_batch)(op, j, at, w, b) == DSG_OK);
            CHECK(DSG_NAME(dsg_op_curvature_batch)(op, h, at, v, w, b) == DSG_OK);
            CHECK(DSG_NAME(dsg_op_residual_gradient_batch)(op, d, s, x, v, b) ==
                  DSG_OK);
            CHECK(memcmp(y, y1, b * m * sizeof *y) == 0);
            CHECK(memcmp(g, g1, b * n * sizeof *g) == 0);
            CHECK(memcmp(j, j1, b * m * sizeof *j) == 0);
            CHECK(memcmp(h, h1, b * n * sizeof *h) == 0);
            CHECK(memcmp(d, d1, b * n * sizeof *d) == 0);
            CHECK(memcmp(s, s1, b * sizeof *s) == 0);
            /* what lies behind the batch is left alone */
            CHECK(b == BATCH || (isnan(y[b * m]) && isnan(j[b * m])));
            CHECK(b == BATCH || (isnan(g[b * n]) && isnan(h[b * n])));
            CHECK(b == BATCH || isnan(d[b * n]));
        }
    if (!linear) {
        CHECK(DSG_NAME(dsg_op_vjp_batch)(op, g, NULL, v, BATCH) == DSG_EVALUE);
        CHECK(DSG_NAME(dsg_op_jvp_batch)(op, j, NULL, w, BATCH) == DSG_EVALUE);
        CHECK(DSG_NAME(dsg_op_curvature_batch)(op, h, NULL, v, w, BATCH) == DSG_EVALUE);
    }
    for (size_t t = 0; t < 3; t++) {
        dsg_set_num_threads(threads[t]);
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_op_forward_batch)(op, y, x, BATCH));
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_op_vjp_batch)(op, g, x, v, BATCH));
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_op_jvp_batch)(op, j, x, w, BATCH));
        CHECK_ALLOCATION_FAILURES(
            DSG_NAME(dsg_op_curvature_batch)(op, h, x, v, w, BATCH));
        CHECK_ALLOCATION_FAILURES(
            DSG_NAME(dsg_op_residual_gradient_batch)(op, d, s, x, v, BATCH));
        CHECK(memcmp(y, y1, BATCH * m * sizeof *y) == 0);
        CHECK(memcmp(d, d1, BATCH * n * sizeof *d) == 0);
    }
    dsg_set_num_threads(1);
    dsg_free(ws);
    free(x);
    free(w);
    free(v);
    free(y);
    free(y1);
    free(j);
    free(j1);
    free(g);
    free(g1);
    free(d);
    free(d1);
    free(h);
    free(h1);
}

static inline void DSG_NAME(check_operator)(const DSG_NAME(dsg_op) *op, double error,
                                            uint64_t seed)
{
    DSG_NAME(check_adjoint)(op, error, seed);
    DSG_NAME(check_batch)(op, seed + 1);
    if (!op->class->linear) {
        seed += 2;
        dsg_real *x = DSG_NAME(random_array)(dsg_shape_size(op->in), &seed);
        DSG_NAME(check_derivatives)(op, x, error, seed);
        free(x);
    }
}
