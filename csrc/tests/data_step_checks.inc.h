/* Checks of data_step_checks.h for one precision. */

/* ---- y = R x T^T by loops, without a closed form --------------------------------- */

typedef struct DSG_NAME(plain) {
    DSG_NAME(dsg_op) op;
    size_t channels, p, h, q, w;
    const double *r, *t; /* NULL: the identity */
} DSG_NAME(plain);

static inline void DSG_NAME(plain_apply)(const DSG_NAME(dsg_op) *op,
                                         dsg_real *restrict out,
                                         const dsg_real *restrict in, bool transposed)
{
    const DSG_NAME(plain) *k = (const DSG_NAME(plain) *)op;
    size_t rows = transposed ? k->h : k->p, columns = transposed ? k->w : k->q;
    size_t in_rows = transposed ? k->p : k->h, in_columns = transposed ? k->q : k->w;
    for (size_t c = 0; c < k->channels; c++)
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < columns; j++) {
                double sum = 0.0;
                for (size_t a = 0; a < in_rows; a++) {
                    double r = transposed ? k->r ? k->r[a * k->h + i] : a == i
                               : k->r     ? k->r[i * k->h + a]
                                          : a == i;
                    if (r == 0.0)
                        continue;
                    for (size_t b = 0; b < in_columns; b++) {
                        double t = transposed ? k->t ? k->t[b * k->w + j] : b == j
                                   : k->t     ? k->t[j * k->w + b]
                                              : b == j;
                        sum += r * t * in[(c * in_rows + a) * in_columns + b];
                    }
                }
                out[(c * rows + i) * columns + j] = (dsg_real)sum;
            }
}

static inline void DSG_NAME(plain_forward)(const DSG_NAME(dsg_op) *op,
                                           dsg_real *restrict y,
                                           const dsg_real *restrict x, void *ws)
{
    (void)ws;
    DSG_NAME(plain_apply)(op, y, x, false);
}

static inline void DSG_NAME(plain_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                       const dsg_real *restrict x,
                                       const dsg_real *restrict v, void *ws)
{
    (void)x;
    (void)ws;
    DSG_NAME(plain_apply)(op, g, v, true);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(plain_class) = {
    .linear = true,
    .forward = DSG_NAME(plain_forward),
    .vjp = DSG_NAME(plain_vjp),
};

/* Owns nothing and is not destroyed; r and t must outlive it. */
static inline DSG_NAME(plain)
    DSG_NAME(make_plain)(size_t channels, size_t p, size_t h, size_t q, size_t w,
                         const double *r, const double *t)
{
    return (DSG_NAME(plain)){
        .op = {.class = &DSG_NAME(plain_class),
               .in = {.c = channels, .h = h, .w = w},
               .out = {.c = channels, .h = p, .w = q}},
        .channels = channels,
        .p = p,
        .h = h,
        .q = q,
        .w = w,
        .r = r,
        .t = t,
    };
}

/* ---- checks ---------------------------------------------------------------------- */

/* The operator's matrix (m, n). */
static inline double *DSG_NAME(dense_matrix)(const DSG_NAME(dsg_op) *op)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    double *a = calloc(n * m, sizeof *a);
    dsg_real *x = calloc(n, sizeof *x), *y = DSG_NAME(nan_array)(m);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    for (size_t j = 0; j < n; j++) {
        x[j] = 1;
        DSG_NAME(dsg_op_forward)(op, y, x, ws);
        x[j] = 0;
        for (size_t i = 0; i < m; i++)
            a[i * n + j] = y[i];
    }
    dsg_free(ws);
    free(x);
    free(y);
    return a;
}

/* b - (A^T A + rho) x, b = A^T y + rho v (v NULL: 0), in double; b_norm may be NULL. */
static inline double DSG_NAME(dense_residual)(const double *a, const dsg_real *x,
                                              const dsg_real *v, const dsg_real *y,
                                              double rho, size_t m, size_t n,
                                              double *b_norm)
{
    double *s = malloc(m * sizeof *s), *r = malloc(n * sizeof *r);
    double *wide = malloc((m + n) * sizeof *wide);
    for (size_t i = 0; i < m; i++)
        wide[i] = y[i];
    if (b_norm) {
        dense_times(r, a, true, wide, m, n);
        for (size_t j = 0; j < n; j++)
            r[j] += v ? rho * v[j] : 0.0;
        *b_norm = dense_norm2(r, n);
    }
    for (size_t j = 0; j < n; j++)
        wide[m + j] = x[j];
    dense_times(s, a, false, wide + m, m, n);
    for (size_t i = 0; i < m; i++)
        s[i] = wide[i] - s[i];
    dense_times(r, a, true, s, m, n);
    for (size_t j = 0; j < n; j++)
        r[j] += rho * ((v ? (double)v[j] : 0.0) - x[j]);
    double norm = dense_norm2(r, n);
    free(s);
    free(r);
    free(wide);
    return norm;
}

/* The prox in closed form for rho from 1e-6 to 1e3.  terms: the length of the longest
 * sum in the operator and in its closed form; 4 * terms * epsilon bounds the rounding
 * of a product with A or with its factors.  The residual is bounded by that much of the
 * sizes of what is added up in the normal equations, the distance to the solution by
 * elimination by the same divided by rho. */
static inline void DSG_NAME(check_prox)(const DSG_NAME(dsg_data_step) *step,
                                        size_t terms, uint64_t seed)
{
    static const double rhos[] = {1e-6, 1e-4, 1e-2, 0.3, 1.0, 30.0, 1e3};
    const DSG_NAME(dsg_op) *op = step->op;
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    double *a = DSG_NAME(dense_matrix)(op), norm = dense_largest(a, m, n);
    double unit = 4.0 * DSG_NAME(epsilon)() * (double)terms;
    dsg_real *v = DSG_NAME(random_array)(n, &seed), *x = DSG_NAME(nan_array)(n);
    dsg_real *y = DSG_NAME(random_array)(m, &seed);
    double *gram = malloc(n * n * sizeof *gram), *want = malloc(n * sizeof *want);
    double *wide = malloc(m * sizeof *wide);
    CHECK(step->class != NULL);

    for (size_t t = 0; t < sizeof rhos / sizeof *rhos; t++) {
        double rho = rhos[t];
        dsg_cg_info info = {.residual = NAN, .iterations = 1};
        for (size_t j = 0; j < n; j++)
            x[j] = (dsg_real)NAN;
        CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, rho, NULL, &info, 1) ==
              DSG_OK);
        CHECK(info.residual == 0.0 && info.iterations == 0);
        double sizes = norm * sqrt(DSG_NAME(dot)(y, y, m)) +
                       (norm * norm + rho) * (sqrt(DSG_NAME(dot)(x, x, n)) +
                                              sqrt(DSG_NAME(dot)(v, v, n)));
        double residual = DSG_NAME(dense_residual)(a, x, v, y, rho, m, n, NULL);
        CHECK_NEAR(residual, 0.0, unit * sizes);

        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) {
                double sum = i == j ? rho : 0.0;
                for (size_t k = 0; k < m; k++)
                    sum += a[k * n + i] * a[k * n + j];
                gram[i * n + j] = sum;
            }
        for (size_t i = 0; i < m; i++)
            wide[i] = y[i];
        dense_times(want, a, true, wide, m, n);
        for (size_t j = 0; j < n; j++)
            want[j] += rho * v[j];
        dense_solve(gram, want, n);
        for (size_t j = 0; j < n; j++)
            want[j] -= x[j];
        CHECK_NEAR(dense_norm2(want, n), 0.0, unit * sizes / rho);
    }
    free(a);
    free(v);
    free(x);
    free(y);
    free(gram);
    free(want);
    free(wide);
}

/* A A+ A = A, A+ A A+ = A+, and A+ A, A A+ symmetric, through random vectors.
 * condition: largest over smallest singular value that is kept. */
static inline void DSG_NAME(check_pinv)(const DSG_NAME(dsg_data_step) *step,
                                        double cutoff, size_t terms, double condition,
                                        uint64_t seed)
{
    const DSG_NAME(dsg_op) *op = step->op;
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *x = DSG_NAME(random_array)(n, &seed);
    dsg_real *z = DSG_NAME(random_array)(m, &seed);
    dsg_real *ax = DSG_NAME(nan_array)(m), *pax = DSG_NAME(nan_array)(n);
    dsg_real *apax = DSG_NAME(nan_array)(m), *pz = DSG_NAME(nan_array)(n);
    dsg_real *apz = DSG_NAME(nan_array)(m), *papz = DSG_NAME(nan_array)(n);
    double norm = NAN;
    CHECK(DSG_NAME(dsg_data_step_norm)(step, &norm) == DSG_OK);
    CHECK(DSG_NAME(dsg_op_forward_batch)(op, ax, x, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, pax, ax, cutoff, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_op_forward_batch)(op, apax, pax, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, pz, z, cutoff, NULL, NULL, 1) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_op_forward_batch)(op, apz, pz, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, papz, apz, cutoff, NULL, NULL, 1) ==
          DSG_OK);

    /* every product with A or A+ is off by `unit` of its largest possible size; an
     * error in A x is enlarged by up to 1 / (smallest value) in A+ A x */
    double unit = 8.0 * DSG_NAME(epsilon)() * (double)terms;
    double size_x = sqrt((double)n), size_z = sqrt((double)m);
    double inverse = norm > 0.0 ? condition / norm : 0.0, worst[2] = {0.0, 0.0};
    for (size_t i = 0; i < m; i++) {
        double d = fabs((double)apax[i] - ax[i]);
        worst[0] = d <= worst[0] ? worst[0] : d;
    }
    for (size_t j = 0; j < n; j++) {
        double d = fabs((double)papz[j] - pz[j]);
        worst[1] = d <= worst[1] ? worst[1] : d;
    }
    CHECK_NEAR(worst[0], 0.0, unit * condition * norm * size_x);
    CHECK_NEAR(worst[1], 0.0, unit * condition * inverse * size_z);
    /* <A+ A x, A+ z> = <x, A+ z> as A+ z has no part that A does not see */
    CHECK_NEAR(DSG_NAME(dot)(pax, pz, n), DSG_NAME(dot)(x, pz, n),
               unit * condition * size_x * inverse * size_z);
    CHECK_NEAR(DSG_NAME(dot)(ax, apz, m), DSG_NAME(dot)(ax, z, m),
               unit * condition * norm * size_x * size_z);
    free(x);
    free(z);
    free(ax);
    free(pax);
    free(apax);
    free(pz);
    free(apz);
    free(papz);
}

/* A batch equals a loop bit for bit at any number of threads; a failed allocation is
 * reported. */
static inline void DSG_NAME(check_data_step_batch)(const DSG_NAME(dsg_data_step) *step,
                                                   double cutoff,
                                                   const dsg_cg_options *options,
                                                   uint64_t seed)
{
    enum { BATCH = 3 };
    static const size_t threads[] = {1, 2, 5};
    size_t n = dsg_shape_size(step->op->in), m = dsg_shape_size(step->op->out);
    dsg_real *v = DSG_NAME(random_array)(BATCH * n, &seed);
    dsg_real *y = DSG_NAME(random_array)(BATCH * m, &seed);
    dsg_real *x = DSG_NAME(nan_array)(BATCH * n), *x1 = DSG_NAME(nan_array)(BATCH * n);
    dsg_real *p = DSG_NAME(nan_array)(BATCH * n), *p1 = DSG_NAME(nan_array)(BATCH * n);
    dsg_cg_info info[BATCH], info1[BATCH];
    memset(info1, 0, sizeof info1);
    dsg_set_num_threads(1);
    for (size_t i = 0; i < BATCH; i++) {
        CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x1 + i * n, v + i * n, y + i * m,
                                                 0.1, options, info1 + i, 1) == DSG_OK);
        CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, p1 + i * n, y + i * m, cutoff,
                                                 options, NULL, 1) == DSG_OK);
    }
    for (size_t b = 0; b <= BATCH; b += b ? 2 : 1) /* 0, 1, 3 */
        for (size_t t = 0; t < 3; t++) {
            memset(info, 0, sizeof info);
            for (size_t i = 0; i < BATCH * n; i++)
                x[i] = p[i] = (dsg_real)NAN;
            dsg_set_num_threads(threads[t]);
            CHECK(DSG_NAME(dsg_data_step_prox_batch)(step, x, v, y, 0.1, options, info,
                                                     b) == DSG_OK);
            CHECK(DSG_NAME(dsg_data_step_pinv_batch)(step, p, y, cutoff, options, NULL,
                                                     b) == DSG_OK);
            CHECK(memcmp(x, x1, b * n * sizeof *x) == 0);
            CHECK(memcmp(p, p1, b * n * sizeof *p) == 0);
            CHECK(memcmp(info, info1, b * sizeof *info) == 0);
            CHECK(b == BATCH || (isnan(x[b * n]) && isnan(p[b * n])));
        }
    for (size_t t = 0; t < 3; t++) {
        dsg_set_num_threads(threads[t]);
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_data_step_prox_batch)(
            step, x, v, y, 0.1, options, info, BATCH));
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_data_step_pinv_batch)(
            step, p, y, cutoff, options, NULL, BATCH));
        CHECK(memcmp(x, x1, BATCH * n * sizeof *x) == 0);
        CHECK(memcmp(p, p1, BATCH * n * sizeof *p) == 0);
    }
    dsg_set_num_threads(1);
    free(v);
    free(y);
    free(x);
    free(x1);
    free(p);
    free(p1);
}
