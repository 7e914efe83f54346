/* The tests for one precision. */

#if DSG_PRECISION == 32
#define EPS FLT_EPSILON
#else
#define EPS DBL_EPSILON
#endif

static dsg_real *DSG_NAME(noise)(size_t n, uint64_t seed)
{
    dsg_real *x = dsg_alloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)utest_random(&seed); /* the same numbers in both precisions */
    return x;
}

/* A projector of one call: prepared, checked. */
static DSG_NAME(dsg_projector) *DSG_NAME(prepared)(const dsg_real *state, size_t b,
                                                   dsg_shape s, dsg_project_options o)
{
    DSG_NAME(dsg_projector) *p = NULL;
    CHECK(DSG_NAME(dsg_projector_create)(&p, b, s) == DSG_OK);
    CHECK(DSG_NAME(dsg_projector_prepare)(p, state, &o) == DSG_OK);
    return p;
}

static double DSG_NAME(dot)(const dsg_real *a, const dsg_real *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

static double DSG_NAME(distance)(const dsg_real *a, const dsg_real *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum);
}

/* P(g) of one image against the reference, ranks and kept energies too.  The tolerance
 * is rounding of the stored factors and of the products, 4 eps n, and of the Gram
 * matrix in double, at the cut: 4 eps n lambda_1 / (lambda_r - lambda_{r+1}). */
static void DSG_NAME(compare)(const dsg_real *state, dsg_shape s, dsg_project_options o)
{
    size_t k = s.h < s.w ? s.h : s.w, n = s.h * s.w;
    double *z = calloc(n, sizeof *z), *sv = calloc(s.c * k, sizeof *sv);
    double *u = calloc(s.c * k * s.h, sizeof *u), *v = calloc(s.c * k * s.w, sizeof *v);
    size_t *expected = calloc(s.c, sizeof *expected);
    for (size_t c = 0; c < s.c; c++) {
        for (size_t i = 0; i < n; i++)
            z[i] = state[c * n + i];
        ref_svd(u + c * k * s.h, sv + c * k, v + c * k * s.w, z, s.h, s.w);
    }
    ref_ranks(expected, sv, s.c, k, &o);

    DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(state, 1, s, o);
    const size_t *ranks = DSG_NAME(dsg_projector_ranks)(p);
    const double *kept = DSG_NAME(dsg_projector_kept)(p);
    dsg_real *g = DSG_NAME(noise)(s.c * n, 77), *g0 = DSG_NAME(noise)(s.c * n, 77);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
    for (size_t c = 0; c < s.c; c++) {
        const double *values = sv + c * k;
        size_t r = expected[c];
        CHECK(ranks[c] == r);
        double total = 0.0, share = 0.0;
        for (size_t j = 0; j < k; j++) {
            total += values[j] * values[j];
            share += j < r ? values[j] * values[j] : 0.0;
        }
        CHECK_NEAR(kept[c], share / total, 8.0 * DBL_EPSILON * (double)k);

        double next = r < k ? values[r] : 0.0, top = values[0] * values[0];
        double gap = r > 0 ? values[r - 1] * values[r - 1] - next * next : top;
        double length = (double)(s.h + s.w);
        double tol = 4.0 * EPS * length + 4.0 * DBL_EPSILON * length * top / gap;
        for (size_t i = 0; i < n; i++)
            z[i] = g0[c * n + i];
        ref_apply(z, u + c * k * s.h, v + c * k * s.w, s.h, s.w, r, o.sides);
        for (size_t i = 0; i < n; i++)
            CHECK_NEAR(g[c * n + i], z[i], tol);
    }
    DSG_NAME(dsg_projector_destroy)(p);
    dsg_free(g);
    dsg_free(g0);
    free(expected);
    free(v);
    free(u);
    free(sv);
    free(z);
}

static void DSG_NAME(test_against_jacobi_svd)(void)
{
    const double energies[] = {0.3, 0.9, 0.99, 1.0};
    for (size_t t = 0; t < SHAPES; t++) {
        dsg_real *state = DSG_NAME(noise)(dsg_shape_size(shapes[t]), 5 + t);
        for (unsigned sides = DSG_LEFT; sides <= DSG_BOTH; sides++)
            for (size_t e = 0; e < 4; e++)
                for (int rule = 0; rule < 3; rule++) {
                    /* the reference follows the published code at 1, we keep all */
                    if (rule == DSG_RANK_OFFICIAL && energies[e] == 1.0)
                        continue;
                    DSG_NAME(compare)(state, shapes[t],
                                      (dsg_project_options){.energy = energies[e],
                                                            .rule = rule,
                                                            .sides = sides});
                }
        for (size_t r = 1; r < 9; r += r < 4 ? 1 : 3)
            DSG_NAME(compare)(state, shapes[t],
                              (dsg_project_options){.rule = DSG_RANK_FIXED,
                                                    .fixed_rank = r,
                                                    .sides = DSG_BOTH});
        dsg_free(state);
    }
}

/* Singular values falling by 10^-0.5 each: small ones come from the SVD itself. */
static void DSG_NAME(test_graded_spectrum)(void)
{
    const dsg_shape sizes[] = {{1, 13, 13}, {1, 11, 18}, {1, 18, 11}};
    for (size_t t = 0; t < 3; t++) {
        dsg_shape s = sizes[t];
        size_t n = s.h * s.w, k = s.h < s.w ? s.h : s.w;
        dsg_real *state = DSG_NAME(noise)(n, 3);
        double *z = calloc(n, sizeof *z), *sv = calloc(k, sizeof *sv);
        double *u = calloc(k * s.h, sizeof *u), *v = calloc(k * s.w, sizeof *v);
        for (size_t i = 0; i < n; i++)
            z[i] = state[i];
        ref_svd(u, sv, v, z, s.h, s.w);
        for (size_t i = 0; i < s.h; i++)
            for (size_t j = 0; j < s.w; j++) {
                double sum = 0.0;
                for (size_t l = 0; l < k; l++)
                    sum +=
                        pow(10.0, -0.5 * (double)l) * u[l * s.h + i] * v[l * s.w + j];
                state[i * s.w + j] = (dsg_real)sum;
            }
        for (unsigned sides = DSG_LEFT; sides <= DSG_BOTH; sides++)
            for (size_t r = 1; r <= 7; r++)
                DSG_NAME(compare)(state, s,
                                  (dsg_project_options){.rule = DSG_RANK_FIXED,
                                                        .fixed_rank = r,
                                                        .sides = sides});
        dsg_free(state);
        free(v);
        free(u);
        free(sv);
        free(z);
    }
}

/* P P = P, <P a, b> = <a, P b>, |P a| <= |a|; the best rank-r approximation stays. */
static void DSG_NAME(check_projection)(const dsg_real *state, dsg_shape s,
                                       dsg_project_options o)
{
    size_t n = dsg_shape_size(s);
    double tol = 8.0 * EPS * (double)(s.h + s.w) * sqrt((double)n);
    DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(state, 1, s, o);
    dsg_real *a = DSG_NAME(noise)(n, 1), *a0 = DSG_NAME(noise)(n, 1);
    dsg_real *b = DSG_NAME(noise)(n, 2), *b0 = DSG_NAME(noise)(n, 2);
    dsg_real *twice = dsg_alloc(n, sizeof *twice);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(p, a) == DSG_OK);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(p, b) == DSG_OK);
    memcpy(twice, a, n * sizeof *a);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(p, twice) == DSG_OK);
    CHECK(DSG_NAME(distance)(twice, a, n) <= tol);
    CHECK_NEAR(DSG_NAME(dot)(a, b0, n), DSG_NAME(dot)(a0, b, n), tol);
    CHECK_NEAR(DSG_NAME(dot)(a, a, n), DSG_NAME(dot)(a, a0, n), tol);
    CHECK(DSG_NAME(dot)(a, a, n) <= DSG_NAME(dot)(a0, a0, n) * (1 + 8 * EPS * s.w));

    size_t plane = s.h * s.w;
    memcpy(a, state, n * sizeof *a);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(p, a) == DSG_OK);
    for (size_t c = 0; c < s.c; c++) {
        const dsg_real *z = state + c * plane, *pz = a + c * plane;
        double norm = DSG_NAME(dot)(z, z, plane);
        CHECK_NEAR(DSG_NAME(dot)(pz, pz, plane),
                   DSG_NAME(dsg_projector_kept)(p)[c] * norm,
                   8 * EPS * (double)(s.h + s.w) * norm);
    }
    DSG_NAME(dsg_projector_destroy)(p);
    dsg_free(a);
    dsg_free(a0);
    dsg_free(b);
    dsg_free(b0);
    dsg_free(twice);
}

/* Where the basis is not unique any will do, but a projection of the right rank it must
 * be, and finite. */
static void DSG_NAME(test_degenerate_states)(void)
{
    enum { H = 12, W = 12, N = H * W };
    for (size_t width = W; width <= W + 5; width += 5)
        for (int kind = 0; kind < 6; kind++) {
            dsg_shape s = {1, H, width};
            dsg_real state[H * (W + 5)];
            dsg_real *random = DSG_NAME(noise)(H * width, 4);
            for (size_t i = 0; i < H; i++)
                for (size_t j = 0; j < width; j++) {
                    const dsg_real values[] = {
                        i == j,                            /* identity */
                        1,                                 /* constant */
                        random[(i / 2) * width + j],       /* every row twice */
                        (dsg_real)((i + j) % 2) * 2 - 1,   /* checkerboard */
                        i == (j + 5) % H,                  /* shift */
                        i < 4 ? random[i * width + j] : 0, /* zero rows */
                    };
                    state[i * width + j] = values[kind];
                }
            for (unsigned sides = DSG_LEFT; sides <= DSG_BOTH; sides++) {
                for (size_t r = 1; r <= H; r++)
                    DSG_NAME(check_projection)(
                        state, s,
                        (dsg_project_options){
                            .rule = DSG_RANK_FIXED, .fixed_rank = r, .sides = sides});
                for (int rule = 0; rule < 3; rule++)
                    DSG_NAME(check_projection)(state, s,
                                               (dsg_project_options){.energy = 0.9,
                                                                     .rule = rule,
                                                                     .sides = sides});
            }
            dsg_free(random);
        }
}

/* Equal singular values are counted, not drawn by lot: ceil(0.75 * 12). */
static void DSG_NAME(test_rank_at_a_tie)(void)
{
    enum { N = 12 };
    dsg_real z[N * N] = {0};
    for (size_t i = 0; i < N; i++)
        z[i * N + (i + 5) % N] = (dsg_real)0.1;
    DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(
        z, 1, (dsg_shape){1, N, N}, (dsg_project_options){.energy = 0.75, .sides = 3});
    CHECK(DSG_NAME(dsg_projector_ranks)(p)[0] == 9);
    CHECK_NEAR(DSG_NAME(dsg_projector_kept)(p)[0], 0.75, N * DBL_EPSILON);
    DSG_NAME(dsg_projector_destroy)(p);
}

/* Diagonal states of known squares; the running sum is .4096 .5120 .5376 .5440 |
 * .7744 .8320 .8576 .8640 | .9664 .9920 .9984 1. */
static void DSG_NAME(test_worked_example)(void)
{
    const double s[3][4] = {{4, 2, 1, 0.5}, {3, 1.5, 1, 0.5}, {2, 1, 0.5, 0.25}};
    const struct {
        double energy;
        size_t official, channel[3], mean;
    } rows[] = {
        {0.5, 0, {1, 1, 1}, 1},  {0.9, 3, {2, 2, 2}, 2},   {0.95, 3, {3, 3, 3}, 3},
        {0.99, 3, {4, 4, 4}, 4}, {0.999, 4, {4, 4, 4}, 4}, {1.0, 4, {4, 4, 4}, 4},
    };
    dsg_real z[3 * 16] = {0};
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < 4; i++)
            z[c * 16 + i * 5] = (dsg_real)s[c][i];
    for (size_t t = 0; t < sizeof rows / sizeof *rows; t++)
        for (int rule = 0; rule < 3; rule++) {
            DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(
                z, 1, (dsg_shape){3, 4, 4},
                (dsg_project_options){
                    .energy = rows[t].energy, .rule = rule, .sides = 3});
            dsg_real g[48];
            for (size_t i = 0; i < 48; i++)
                g[i] = 1;
            CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
            for (size_t c = 0; c < 3; c++) {
                size_t r = rule == DSG_RANK_OFFICIAL ? rows[t].official
                           : rule == DSG_RANK_MEAN   ? rows[t].mean
                                                     : rows[t].channel[c];
                CHECK(DSG_NAME(dsg_projector_ranks)(p)[c] == r);
                /* the leading r x r block is kept */
                for (size_t i = 0; i < 16; i++)
                    CHECK_NEAR(g[c * 16 + i], i / 4 < r && i % 4 < r, 8 * EPS);
            }
            DSG_NAME(dsg_projector_destroy)(p);
        }
}

static void DSG_NAME(test_full_rank_of_a_square_is_the_identity)(void)
{
    const dsg_shape s = {4, 9, 9};
    size_t n = dsg_shape_size(s);
    dsg_real *state = DSG_NAME(noise)(n, 8), *g0 = DSG_NAME(noise)(n, 9);
    dsg_real *g = dsg_alloc(n, sizeof *g);
    const dsg_project_options options[] = {
        {.energy = 1.0, .sides = DSG_BOTH},
        {.energy = 1.0, .rule = DSG_RANK_MEAN, .sides = DSG_LEFT},
        {.energy = 1.0, .rule = DSG_RANK_OFFICIAL, .sides = DSG_RIGHT},
        {.rule = DSG_RANK_FIXED, .fixed_rank = 9, .sides = DSG_BOTH},
        {.rule = DSG_RANK_FIXED, .fixed_rank = SIZE_MAX, .sides = DSG_BOTH},
        /* four channels of like energy: position > 27 */
        {.energy = 0.99, .rule = DSG_RANK_OFFICIAL, .sides = DSG_BOTH},
    };
    for (size_t t = 0; t < sizeof options / sizeof *options; t++) {
        DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(state, 1, s, options[t]);
        memcpy(g, g0, n * sizeof *g);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
        CHECK(memcmp(g, g0, n * sizeof *g) == 0);
        for (size_t c = 0; c < s.c; c++) {
            CHECK(DSG_NAME(dsg_projector_ranks)(p)[c] == 9);
            CHECK(DSG_NAME(dsg_projector_kept)(p)[c] == 1.0);
        }
        DSG_NAME(dsg_projector_destroy)(p);
    }

    /* a weak fourth channel: the sum arrives within the third */
    for (size_t i = 3 * 81; i < n; i++)
        state[i] *= (dsg_real)0.01;
    DSG_NAME(compare)(state, s,
                      (dsg_project_options){
                          .energy = 0.9, .rule = DSG_RANK_OFFICIAL, .sides = DSG_BOTH});
    dsg_free(state);
    dsg_free(g0);
    dsg_free(g);
}

static void DSG_NAME(test_zero_channels)(void)
{
    const dsg_shape s = {3, 6, 8};
    size_t plane = 48, n = 144;
    dsg_real *state = DSG_NAME(noise)(n, 10), *g0 = DSG_NAME(noise)(n, 11);
    dsg_real *g = dsg_alloc(n, sizeof *g);
    memset(state + plane, 0, plane * sizeof *state);
    for (int rule = 0; rule < 4; rule++) {
        DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(
            state, 1, s,
            (dsg_project_options){
                .energy = 0.9, .rule = rule, .fixed_rank = 2, .sides = DSG_BOTH});
        memcpy(g, g0, n * sizeof *g);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
        const size_t *ranks = DSG_NAME(dsg_projector_ranks)(p);
        CHECK(rule == DSG_RANK_OFFICIAL ? ranks[1] == ranks[0] : ranks[1] == 0);
        CHECK(DSG_NAME(dsg_projector_kept)(p)[1] == 1.0);
        CHECK(memcmp(g + plane, g0 + plane, plane * sizeof *g) == 0);
        CHECK(memcmp(g, g0, plane * sizeof *g) != 0);
        DSG_NAME(dsg_projector_destroy)(p);
    }

    /* nothing but zeros */
    memset(state, 0, n * sizeof *state);
    for (int rule = 0; rule < 4; rule++) {
        DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(
            state, 1, s,
            (dsg_project_options){
                .energy = 0.9, .rule = rule, .fixed_rank = 2, .sides = DSG_BOTH});
        memcpy(g, g0, n * sizeof *g);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
        for (size_t i = 0; i < n; i++)
            CHECK(g[i] == (rule == DSG_RANK_OFFICIAL ? 0 : g0[i]));
        for (size_t c = 0; c < 3; c++)
            CHECK(DSG_NAME(dsg_projector_ranks)(p)[c] == 0 &&
                  DSG_NAME(dsg_projector_kept)(p)[c] == 1.0);
        DSG_NAME(dsg_projector_destroy)(p);
    }
    dsg_free(state);
    dsg_free(g0);
    dsg_free(g);
}

/* Powers of two change nothing at all, up to the ends of the range. */
static void DSG_NAME(test_scale_invariance)(void)
{
    const dsg_shape s = {3, 10, 10};
    size_t n = 300;
    dsg_real *state = DSG_NAME(noise)(n, 12), *scaled = dsg_alloc(n, sizeof *scaled);
    dsg_real *g = DSG_NAME(noise)(n, 13), *h = dsg_alloc(n, sizeof *h);
    for (size_t i = 0; i < n; i++) /* few bits: even tiny multiples are exact */
        state[i] = (dsg_real)((int)(state[i] * 128)) / 128;
    const int exponents[] = {-10, 33, DSG_PRECISION == 32 ? 127 : 1023,
                             DSG_PRECISION == 32 ? -142 : -1067};
    for (int rule = 0; rule < 3; rule++) {
        dsg_project_options o = {.energy = 0.9, .rule = rule, .sides = DSG_BOTH};
        DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(state, 1, s, o);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
        DSG_NAME(dsg_projector_destroy)(p);
        for (size_t e = 0; e < 4; e++) {
            for (size_t i = 0; i < n; i++)
                scaled[i] = (dsg_real)ldexp((double)state[i], exponents[e]);
            dsg_real *again = DSG_NAME(noise)(n, 13);
            p = DSG_NAME(prepared)(scaled, 1, s, o);
            CHECK(DSG_NAME(dsg_projector_apply_batch)(p, again) == DSG_OK);
            CHECK(memcmp(g, again, n * sizeof *g) == 0);
            DSG_NAME(dsg_projector_destroy)(p);
            dsg_free(again);
        }
        dsg_free(g);
        g = DSG_NAME(noise)(n, 13);
    }
    dsg_free(state);
    dsg_free(scaled);
    dsg_free(g);
    dsg_free(h);
}

static void DSG_NAME(test_batch_and_threads)(void)
{
    enum { B = 5 };
    const dsg_shape s = {3, 17, 14};
    size_t n = dsg_shape_size(s);
    dsg_real *state = DSG_NAME(noise)(B * n, 14), *g0 = DSG_NAME(noise)(B * n, 15);
    dsg_real *loop = dsg_alloc(B * n, sizeof *loop), *g = dsg_alloc(B * n, sizeof *g);
    dsg_project_options o = {.energy = 0.9, .rule = DSG_RANK_MEAN, .sides = DSG_BOTH};
    memcpy(loop, g0, B * n * sizeof *g);
    size_t ranks[B * 3];
    for (size_t i = 0; i < B; i++) {
        DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(state + i * n, 1, s, o);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, loop + i * n) == DSG_OK);
        memcpy(ranks + 3 * i, DSG_NAME(dsg_projector_ranks)(p), 3 * sizeof *ranks);
        DSG_NAME(dsg_projector_destroy)(p);
    }
    const size_t threads[] = {1, 2, 5};
    for (size_t t = 0; t < 3; t++) {
        dsg_set_num_threads(threads[t]);
        DSG_NAME(dsg_projector) *p = DSG_NAME(prepared)(state, B, s, o);
        memcpy(g, g0, B * n * sizeof *g);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_OK);
        CHECK(memcmp(g, loop, B * n * sizeof *g) == 0);
        CHECK(memcmp(ranks, DSG_NAME(dsg_projector_ranks)(p), sizeof ranks) == 0);

        /* one image with a workspace of the caller's */
        void *ws = dsg_alloc(DSG_NAME(dsg_projector_workspace)(p), 1);
        memcpy(g, g0 + 2 * n, n * sizeof *g);
        DSG_NAME(dsg_projector_apply)(p, 2, g, ws);
        CHECK(memcmp(g, loop + 2 * n, n * sizeof *g) == 0);
        dsg_free(ws);
        DSG_NAME(dsg_projector_destroy)(p);
    }
    dsg_set_num_threads(2);

    DSG_NAME(dsg_projector) *none = DSG_NAME(prepared)(NULL, 0, s, o);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(none, NULL) == DSG_OK);
    CHECK(DSG_NAME(dsg_projector_batch)(none) == 0);
    DSG_NAME(dsg_projector_destroy)(none);
    dsg_free(state);
    dsg_free(g0);
    dsg_free(loop);
    dsg_free(g);
}

static void DSG_NAME(test_errors)(void)
{
    const dsg_shape s = {2, 5, 4};
    dsg_real *state = DSG_NAME(noise)(3 * 40, 16), *g = DSG_NAME(noise)(3 * 40, 17);
    DSG_NAME(dsg_projector) *p = NULL;
    const dsg_shape bad_shapes[] = {{0, 5, 4},         {2, 0, 4},
                                    {2, 5, 0},         {SIZE_MAX / 2, 5, 4},
                                    {1, 40000, 40000}, {1, 1, (size_t)1 << 33}};
    for (size_t i = 0; i < sizeof bad_shapes / sizeof *bad_shapes; i++)
        CHECK(DSG_NAME(dsg_projector_create)(&p, 1, bad_shapes[i]) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_projector_create)(&p, SIZE_MAX / 2, s) == DSG_ESHAPE);

    CHECK(DSG_NAME(dsg_projector_create)(&p, 3, s) == DSG_OK);
    dsg_shape got = DSG_NAME(dsg_projector_shape)(p);
    CHECK(DSG_NAME(dsg_projector_batch)(p) == 3 && got.c == 2 && got.h == 5 &&
          got.w == 4);
    CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_ENOTREADY);
    CHECK(!DSG_NAME(dsg_projector_ranks)(p) && !DSG_NAME(dsg_projector_kept)(p));

    const dsg_project_options bad[] = {
        {.energy = 0.0, .sides = 3},
        {.energy = -1.0, .sides = 3},
        {.energy = 1.0 + 1e-15, .sides = 3},
        {.energy = NAN, .sides = 3},
        {.energy = 0.9, .sides = 0},
        {.energy = 0.9, .sides = 4},
        {.energy = 0.9, .rule = (dsg_rank_rule)4, .sides = 3},
        {.energy = 0.9, .rule = DSG_RANK_FIXED, .fixed_rank = 0, .sides = 3},
    };
    const dsg_project_options good = {.energy = 0.9, .sides = 3};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(DSG_NAME(dsg_projector_prepare)(p, state, &good) == DSG_OK);
        CHECK(DSG_NAME(dsg_projector_prepare)(p, state, &bad[i]) == DSG_EVALUE);
        CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_ENOTREADY);
        CHECK(!DSG_NAME(dsg_projector_ranks)(p) && !DSG_NAME(dsg_projector_kept)(p));
    }

    const double wrong[] = {NAN, INFINITY, -INFINITY};
    for (size_t at = 0; at < 120; at += 17)
        for (size_t i = 0; i < 3; i++) {
            CHECK(DSG_NAME(dsg_projector_prepare)(p, state, &good) == DSG_OK);
            dsg_real saved = state[at];
            state[at] = (dsg_real)wrong[i];
            CHECK(DSG_NAME(dsg_projector_prepare)(p, state, &good) == DSG_ENONFINITE);
            CHECK(DSG_NAME(dsg_projector_apply_batch)(p, g) == DSG_ENOTREADY);
            state[at] = saved;
        }
    /* ... also where nothing is decomposed */
    state[7] = NAN;
    CHECK(DSG_NAME(dsg_projector_prepare)(
              p, state, &(dsg_project_options){.energy = 1.0, .sides = 2}) ==
          DSG_ENONFINITE);
    DSG_NAME(dsg_projector_destroy)(p);
    DSG_NAME(dsg_projector_destroy)(NULL);
    dsg_free(state);
    dsg_free(g);
}

static void DSG_NAME(test_allocation_failures)(void)
{
    const dsg_shape s = {2, 6, 5};
    dsg_real *state = DSG_NAME(noise)(120, 18), *g = DSG_NAME(noise)(120, 19);
    dsg_set_num_threads(1);
    for (size_t k = 1, done = 0; !done; k++) {
        size_t live = dsg_alloc_live();
        DSG_NAME(dsg_projector) *p = NULL;
        dsg_fail_alloc_after(k);
        dsg_status err = DSG_NAME(dsg_projector_create)(&p, 2, s);
        if (!err)
            err = DSG_NAME(dsg_projector_prepare)(
                p, state, &(dsg_project_options){.energy = 0.9, .sides = 3});
        if (!err)
            err = DSG_NAME(dsg_projector_apply_batch)(p, g);
        dsg_fail_alloc_after(0);
        CHECK(err == DSG_OK || err == DSG_ENOMEM);
        done = err == DSG_OK;
        CHECK(!done || k > 7);
        DSG_NAME(dsg_projector_destroy)(p);
        CHECK(dsg_alloc_live() == live);
    }
    dsg_set_num_threads(2);
    dsg_free(state);
    dsg_free(g);
}

static void DSG_NAME(run)(void)
{
    DSG_NAME(test_against_jacobi_svd)();
    DSG_NAME(test_graded_spectrum)();
    DSG_NAME(test_degenerate_states)();
    DSG_NAME(test_rank_at_a_tie)();
    DSG_NAME(test_worked_example)();
    DSG_NAME(test_full_rank_of_a_square_is_the_identity)();
    DSG_NAME(test_zero_channels)();
    DSG_NAME(test_scale_invariance)();
    DSG_NAME(test_batch_and_threads)();
    DSG_NAME(test_errors)();
    DSG_NAME(test_allocation_failures)();
}

#undef EPS
