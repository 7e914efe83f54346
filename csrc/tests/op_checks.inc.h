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

/* error: a bound on |A(x) - fl(A(x))| and |A^T v - fl(A^T v)| per entry, for entries of
 * x and v in [-1, 1], as the caller derives it. */
static inline void DSG_NAME(check_adjoint)(const DSG_NAME(dsg_op) *op, double error,
                                           uint64_t seed)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *x = DSG_NAME(random_array)(n, &seed), *y = DSG_NAME(nan_array)(m);
    dsg_real *v = DSG_NAME(random_array)(m, &seed), *g = DSG_NAME(nan_array)(n);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    DSG_NAME(dsg_op_vjp)(op, g, NULL, v, ws);
    /* both sums have terms of at most 1 with that error */
    CHECK_NEAR(DSG_NAME(dot)(y, v, m), DSG_NAME(dot)(x, g, n), error * (double)(n + m));

    /* r = A(x) - y and g = A^T r, from the parts */
    dsg_real *r = DSG_NAME(random_array)(m, &seed), *h = DSG_NAME(nan_array)(n);
    double got = DSG_NAME(dsg_op_residual_gradient)(op, g, x, r, ws), want = 0.0;
    for (size_t i = 0; i < m; i++) {
        r[i] = y[i] - r[i];
        want += (double)r[i] * r[i];
    }
    DSG_NAME(dsg_op_vjp)(op, h, NULL, r, ws);
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
    free(v);
    free(g);
    free(r);
    free(h);
}

static inline void DSG_NAME(check_batch)(const DSG_NAME(dsg_op) *op, uint64_t seed)
{
    enum { BATCH = 3 };
    static const size_t threads[] = {1, 2, 5};
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *x = DSG_NAME(random_array)(BATCH * n, &seed);
    dsg_real *v = DSG_NAME(random_array)(BATCH * m, &seed);
    dsg_real *y = DSG_NAME(nan_array)(BATCH * m), *y1 = DSG_NAME(nan_array)(BATCH * m);
    dsg_real *g = DSG_NAME(nan_array)(BATCH * n), *g1 = DSG_NAME(nan_array)(BATCH * n);
    dsg_real *d = DSG_NAME(nan_array)(BATCH * n), *d1 = DSG_NAME(nan_array)(BATCH * n);
    double s[BATCH], s1[BATCH];
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    for (size_t i = 0; i < BATCH; i++) {
        DSG_NAME(dsg_op_forward)(op, y1 + i * m, x + i * n, ws);
        DSG_NAME(dsg_op_vjp)(op, g1 + i * n, x + i * n, v + i * m, ws);
        s1[i] = DSG_NAME(dsg_op_residual_gradient)(op, d1 + i * n, x + i * n, v + i * m,
                                                   ws);
    }
    for (size_t b = 0; b <= BATCH; b += b ? 2 : 1) /* 0, 1, 3 */
        for (size_t t = 0; t < 3; t++) {
            for (size_t i = 0; i < BATCH * m; i++)
                y[i] = (dsg_real)NAN;
            for (size_t i = 0; i < BATCH * n; i++)
                g[i] = d[i] = (dsg_real)NAN;
            dsg_set_num_threads(threads[t]);
            CHECK(DSG_NAME(dsg_op_forward_batch)(op, y, x, b) == DSG_OK);
            CHECK(DSG_NAME(dsg_op_vjp_batch)(op, g, b & 1 ? NULL : x, v, b) == DSG_OK);
            CHECK(DSG_NAME(dsg_op_residual_gradient_batch)(op, d, s, x, v, b) ==
                  DSG_OK);
            CHECK(memcmp(y, y1, b * m * sizeof *y) == 0);
            CHECK(memcmp(g, g1, b * n * sizeof *g) == 0);
            CHECK(memcmp(d, d1, b * n * sizeof *d) == 0);
            CHECK(memcmp(s, s1, b * sizeof *s) == 0);
            /* what lies behind the batch is left alone */
            CHECK(b == BATCH || (isnan(y[b * m]) && isnan(g[b * n])));
            CHECK(b == BATCH || isnan(d[b * n]));
        }
    for (size_t t = 0; t < 3; t++) {
        dsg_set_num_threads(threads[t]);
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_op_forward_batch)(op, y, x, BATCH));
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_op_vjp_batch)(op, g, x, v, BATCH));
        CHECK_ALLOCATION_FAILURES(
            DSG_NAME(dsg_op_residual_gradient_batch)(op, d, s, x, v, BATCH));
        CHECK(memcmp(y, y1, BATCH * m * sizeof *y) == 0);
        CHECK(memcmp(d, d1, BATCH * n * sizeof *d) == 0);
    }
    dsg_set_num_threads(1);
    dsg_free(ws);
    free(x);
    free(v);
    free(y);
    free(y1);
    free(g);
    free(g1);
    free(d);
    free(d1);
}

static inline void DSG_NAME(check_operator)(const DSG_NAME(dsg_op) *op, double error,
                                            uint64_t seed)
{
    DSG_NAME(check_adjoint)(op, error, seed);
    DSG_NAME(check_batch)(op, seed + 1);
}
