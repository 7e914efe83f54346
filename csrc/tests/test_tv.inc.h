/* Tests of total variation for one precision. */

/* d[0] = to the right, d[1] = downwards, (c, h, w) each. */
static void DSG_NAME(differences)(double *d, const double *x, dsg_shape s)
{
    size_t n = dsg_shape_size(s);
    for (size_t k = 0; k < n; k++) {
        size_t j = k % s.w, i = k / s.w % s.h;
        d[k] = j + 1 < s.w ? x[k + 1] - x[k] : 0.0;
        d[n + k] = i + 1 < s.h ? x[k + s.w] - x[k] : 0.0;
    }
}

/* x = v - weight D^T p, by the adjoint of the differences entry by entry. */
static void DSG_NAME(primal)(double *x, const double *v, const double *p, dsg_shape s,
                             double weight)
{
    size_t n = dsg_shape_size(s);
    memcpy(x, v, n * sizeof *x);
    for (size_t k = 0; k < n; k++) {
        size_t j = k % s.w, i = k / s.w % s.h;
        if (j + 1 < s.w) {
            x[k + 1] -= weight * p[k];
            x[k] += weight * p[k];
        }
        if (i + 1 < s.h) {
            x[k + s.w] -= weight * p[n + k];
            x[k] += weight * p[n + k];
        }
    }
}

/* Length of the vector that entry k belongs to. */
static double DSG_NAME(length)(const double *d, size_t k, dsg_shape s, bool coupled)
{
    size_t n = dsg_shape_size(s), plane = s.h * s.w;
    if (!coupled)
        return hypot(d[k], d[n + k]);
    double sum = 0.0;
    for (size_t a = k % plane; a < n; a += plane)
        sum += d[a] * d[a] + d[n + a] * d[n + a];
    return sqrt(sum);
}

static double DSG_NAME(naive_norm)(const double *x, dsg_shape s, bool coupled)
{
    size_t n = dsg_shape_size(s);
    double *d = malloc(2 * n * sizeof *d), sum = 0.0;
    DSG_NAME(differences)(d, x, s);
    for (size_t k = 0; k < (coupled ? s.h * s.w : n); k++)
        sum += DSG_NAME(length)(d, k, s, coupled);
    free(d);
    return sum;
}

static void DSG_NAME(naive_prox)(double *x, double *p, const double *v, dsg_shape s,
                                 const dsg_tv_options *o)
{
    size_t n = dsg_shape_size(s);
    double *q = malloc(2 * n * sizeof *q), *d = malloc(2 * n * sizeof *d), t = 1.0;
    memcpy(q, p, 2 * n * sizeof *q);
    for (size_t iteration = 0; iteration < o->iterations; iteration++) {
        DSG_NAME(primal)(x, v, q, s, o->weight);
        DSG_NAME(differences)(d, x, s);
        for (size_t k = 0; k < 2 * n; k++)
            d[k] = q[k] + d[k] / (8 * o->weight);
        double t_next = (1 + sqrt(1 + 4 * t * t)) / 2;
        for (size_t k = 0; k < 2 * n; k++) {
            double next = d[k] / fmax(1.0, DSG_NAME(length)(d, k % n, s, o->coupled));
            q[k] = next + (t - 1) / t_next * (next - p[k]);
            p[k] = next;
        }
        t = t_next;
    }
    DSG_NAME(primal)(x, v, p, s, o->weight);
    free(q);
    free(d);
}

static double *DSG_NAME(widened)(const dsg_real *x, size_t n)
{
    double *out = malloc((n + 1) * sizeof *out);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i];
    return out;
}

/* 0 where a dual has no meaning. */
static void DSG_NAME(clear_edges)(dsg_real *p, dsg_shape s)
{
    size_t n = dsg_shape_size(s);
    for (size_t k = 0; k < n; k++) {
        if (k % s.w + 1 == s.w)
            p[k] = 0;
        if (k / s.w % s.h + 1 == s.h)
            p[n + k] = 0;
    }
}

static void DSG_NAME(test_the_norm_is_the_loop)(void)
{
    for (size_t k = 0; k < SHAPES; k++)
        for (int coupled = 0; coupled < 2; coupled++) {
            uint64_t seed = k + 1;
            size_t n = dsg_shape_size(shapes[k]);
            dsg_real *x = DSG_NAME(random_array)(B * n, &seed);
            double *wide = DSG_NAME(widened)(x, B * n), got[B] = {NAN, NAN};
            CHECK(DSG_NAME(dsg_tv_norm)(got, x, B, shapes[k], coupled) == DSG_OK);
            for (size_t i = 0; i < B; i++)
                CHECK_NEAR(got[i],
                           DSG_NAME(naive_norm)(wide + i * n, shapes[k], coupled),
                           8 * (double)n * DBL_EPSILON); /* n terms below 3 */
            free(x);
            free(wide);
        }
}

static void DSG_NAME(test_the_prox_is_the_iteration_written_out)(void)
{
    const size_t counts[] = {1, 2, 11};
    for (size_t k = 0; k < SHAPES; k++)
        for (int coupled = 0; coupled < 2; coupled++)
            for (size_t c = 0; c < 3; c++) {
                dsg_shape s = shapes[k];
                dsg_tv_options o = {
                    .weight = 0.2, .iterations = counts[c], .coupled = coupled};
                uint64_t seed = k + 1;
                size_t n = dsg_shape_size(s);
                dsg_real *v = DSG_NAME(random_array)(B * n, &seed);
                dsg_real *p = DSG_NAME(random_array)(2 * B * n, &seed);
                dsg_real *x = DSG_NAME(nan_array)(B * n);
                for (size_t i = 0; i < B; i++)
                    DSG_NAME(clear_edges)(p + 2 * i * n, s);
                double *want = malloc(n * sizeof *want);
                double *wide = DSG_NAME(widened)(v, B * n);
                double *dual = DSG_NAME(widened)(p, 2 * B * n);
                CHECK(DSG_NAME(dsg_tv_prox)(x, v, p, B, s, &o) == DSG_OK);
                /* a dozen roundings an iteration, none of which grows by more than the
                 * momentum makes it, 1 a step; times 1 / (8 weight) in the dual */
                double worst = 0, count = (double)(counts[c] * counts[c]);
                for (size_t i = 0; i < B; i++) {
                    double *q = dual + 2 * i * n;
                    DSG_NAME(naive_prox)(want, q, wide + i * n, s, &o);
                    for (size_t j = 0; j < n; j++) {
                        worst = fmax(worst, fabs(x[i * n + j] - want[j]));
                        worst = fmax(worst, isnan(x[i * n + j]));
                    }
                    for (size_t j = 0; j < 2 * n; j++)
                        worst = fmax(worst, fabs(p[2 * i * n + j] - q[j]));
                }
                CHECK_NEAR(worst, 0, 12 * (count + 1) * DSG_NAME(epsilon)());
                free(v);
                free(p);
                free(x);
                free(want);
                free(wide);
                free(dual);
            }
}

/* weight (TV(x) - <p, D x>), from what the prox left. */
static double DSG_NAME(gap)(const dsg_real *x, const dsg_real *p, dsg_shape s,
                            const dsg_tv_options *o)
{
    size_t n = dsg_shape_size(s);
    double *wide = DSG_NAME(widened)(x, n), *d = malloc(2 * n * sizeof *d), sum = 0;
    DSG_NAME(differences)(d, wide, s);
    for (size_t k = 0; k < 2 * n; k++)
        sum += d[k] * p[k];
    double norm = DSG_NAME(naive_norm)(wide, s, o->coupled);
    free(wide);
    free(d);
    return o->weight * (norm - sum);
}

static void DSG_NAME(test_the_duality_gap_goes_to_zero)(void)
{
    for (size_t k = 0; k < SHAPES; k++)
        for (int coupled = 0; coupled < 2; coupled++) {
            dsg_shape s = shapes[k];
            uint64_t seed = k + 1;
            size_t n = dsg_shape_size(s);
            dsg_real *v = DSG_NAME(random_array)(n, &seed);
            dsg_real *x = DSG_NAME(nan_array)(n);
            dsg_tv_options o = {.weight = 0.3, .coupled = coupled};
            const size_t counts[] = {1, 30, 1000};
            /* n terms below 3, some roundings each */
            double first = 0, floor = 40 * (double)n * DSG_NAME(epsilon)();
            for (size_t c = 0; c < 3; c++) {
                dsg_real *p = calloc(2 * n, sizeof *p);
                o.iterations = counts[c];
                CHECK(DSG_NAME(dsg_tv_prox)(x, v, p, 1, s, &o) == DSG_OK);
                double gap = DSG_NAME(gap)(x, p, s, &o);
                CHECK(gap > -floor);
                first = c ? first : gap;
                CHECK(gap <= (c == 2 ? 1e-4 : 1.0) * first + floor);
                free(p);
            }
            free(v);
            free(x);
        }
}

static void DSG_NAME(test_what_is_beyond_the_edge_has_no_meaning)(void)
{
    dsg_shape s = {2, 6, 7};
    size_t n = dsg_shape_size(s);
    uint64_t seed = 9;
    dsg_real *v = DSG_NAME(random_array)(n, &seed);
    dsg_real *p = DSG_NAME(random_array)(2 * n, &seed), *q = malloc(2 * n * sizeof *q);
    dsg_real *x = DSG_NAME(nan_array)(n), *y = DSG_NAME(nan_array)(n);
    memcpy(q, p, 2 * n * sizeof *q);
    DSG_NAME(clear_edges)(q, s);
    for (size_t k = 0; k < n; k++) {
        if (k % s.w + 1 == s.w)
            p[k] = (dsg_real)NAN;
        if (k / s.w % s.h + 1 == s.h)
            p[n + k] = (dsg_real)NAN;
    }
    dsg_tv_options o = {.weight = 0.2, .iterations = 3, .coupled = true};
    CHECK(DSG_NAME(dsg_tv_prox)(x, v, p, 1, s, &o) == DSG_OK);
    CHECK(DSG_NAME(dsg_tv_prox)(y, v, q, 1, s, &o) == DSG_OK);
    CHECK(memcmp(x, y, n * sizeof *x) == 0);
    CHECK(memcmp(p, q, 2 * n * sizeof *p) == 0);
    DSG_NAME(clear_edges)(q, s);
    CHECK(memcmp(p, q, 2 * n * sizeof *p) == 0);
    free(v);
    free(p);
    free(q);
    free(x);
    free(y);
}

static void DSG_NAME(test_a_batch_equals_single_images_at_any_thread_count)(void)
{
    const size_t threads[] = {1, 2, 5};
    for (size_t k = 0; k < SHAPES; k++)
        for (int coupled = 0; coupled < 2; coupled++) {
            dsg_shape s = shapes[k];
            uint64_t seed = k + 1;
            size_t n = dsg_shape_size(s);
            dsg_tv_options o = {.weight = 0.2, .iterations = 5, .coupled = coupled};
            dsg_real *v = DSG_NAME(random_array)(B * n, &seed);
            dsg_real *x = DSG_NAME(nan_array)(B * n), *y = DSG_NAME(nan_array)(B * n);
            dsg_real *q = calloc(2 * B * n, sizeof *q);
            double of_batch[B], alone;
            for (size_t i = 0; i < B; i++)
                CHECK(DSG_NAME(dsg_tv_prox)(y + i * n, v + i * n, q + 2 * i * n, 1, s,
                                            &o) == DSG_OK);
            for (size_t t = 0; t < 3; t++) {
                dsg_set_num_threads(threads[t]);
                dsg_real *p = calloc(2 * B * n, sizeof *p);
                CHECK(DSG_NAME(dsg_tv_prox)(x, v, p, B, s, &o) == DSG_OK);
                CHECK(memcmp(x, y, B * n * sizeof *x) == 0);
                CHECK(memcmp(p, q, 2 * B * n * sizeof *p) == 0);
                free(p);
                CHECK(DSG_NAME(dsg_tv_norm)(of_batch, x, B, s, coupled) == DSG_OK);
                for (size_t i = 0; i < B; i++) {
                    CHECK(DSG_NAME(dsg_tv_norm)(&alone, y + i * n, 1, s, coupled) ==
                          DSG_OK);
                    CHECK(alone == of_batch[i]);
                }
            }
            free(v);
            free(x);
            free(y);
            free(q);
        }
}

static void DSG_NAME(test_two_pixels_move_towards_each_other)(void)
{
    const dsg_shape line[] = {{1, 1, 2}, {1, 2, 1}};
    const dsg_real v[3][2] = {{0, 1}, {0, (dsg_real)0.25}, {2, -1}};
    const double want[3][2] = {{0.125, 0.875}, {0.125, 0.125}, {1.875, -0.875}};
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < 3; i++) {
            dsg_real p[4] = {0}, x[2] = {(dsg_real)NAN, (dsg_real)NAN};
            dsg_tv_options o = {.weight = 0.125, .iterations = 4000};
            CHECK(DSG_NAME(dsg_tv_prox)(x, v[i], p, 1, line[k], &o) == DSG_OK);
            /* |x - prox|^2 / 2 <= 2 (8 w^2) / (k + 1)^2 */
            CHECK_NEAR(x[0], want[i][0], sqrt(32) * 0.125 / 4001);
            CHECK_NEAR(x[1], want[i][1], sqrt(32) * 0.125 / 4001);
        }
}

static void DSG_NAME(test_wrong_calls_are_refused)(void)
{
    dsg_shape s = {2, 4, 5};
    size_t n = dsg_shape_size(s);
    uint64_t seed = 9;
    dsg_real *v = DSG_NAME(random_array)(B * n, &seed);
    dsg_real *p = calloc(2 * B * n, sizeof *p), *x = DSG_NAME(nan_array)(B * n);
    double norm[B];
    double tiny = sizeof(dsg_real) == 4 ? 1e-39 : 1e-309;
    double huge = sizeof(dsg_real) == 4 ? 1e39 : INFINITY;
    const dsg_tv_options bad[] = {{0.0, 1, false},  {-1.0, 1, false}, {NAN, 1, false},
                                  {tiny, 1, false}, {huge, 1, false}, {1.0, 0, false}};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        CHECK(DSG_NAME(dsg_tv_prox)(x, v, p, B, s, &bad[k]) == DSG_EVALUE);
    dsg_tv_options o = {.weight = 0.2, .iterations = 2};
    const dsg_shape wrong[] = {{0, 4, 5}, {2, 0, 5}, {2, 4, 0}, {2, SIZE_MAX / 2, 2}};
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        CHECK(DSG_NAME(dsg_tv_prox)(x, v, p, B, wrong[k], &o) == DSG_ESHAPE);
        CHECK(DSG_NAME(dsg_tv_norm)(norm, v, B, wrong[k], false) == DSG_ESHAPE);
    }
    for (size_t k = 0; k < B * n; k++)
        CHECK(isnan(x[k]) && p[k] == 0 && p[B * n + k] == 0);
    CHECK(DSG_NAME(dsg_tv_prox)(NULL, NULL, NULL, 0, s, &o) == DSG_OK);
    CHECK(DSG_NAME(dsg_tv_norm)(NULL, NULL, 0, s, true) == DSG_OK);

    dsg_set_num_threads(2);
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_tv_prox)(x, v, p, B, s, &o));
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_tv_norm)(norm, v, B, s, false));
    free(v);
    free(p);
    free(x);
}

static void DSG_NAME(test_tv_all)(void)
{
    DSG_NAME(test_the_norm_is_the_loop)();
    DSG_NAME(test_the_prox_is_the_iteration_written_out)();
    DSG_NAME(test_the_duality_gap_goes_to_zero)();
    DSG_NAME(test_what_is_beyond_the_edge_has_no_meaning)();
    DSG_NAME(test_a_batch_equals_single_images_at_any_thread_count)();
    DSG_NAME(test_two_pixels_move_towards_each_other)();
    DSG_NAME(test_wrong_calls_are_refused)();
}
