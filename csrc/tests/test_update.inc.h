/* Tests of the updates for one precision. */

/* x and what else an update reads or writes, (b, n) each; a is also Adam's m, c its v.
 */
typedef struct DSG_NAME(data) {
    size_t n;
    dsg_real *x, *a, *c, *g;
} DSG_NAME(data);

static DSG_NAME(data) DSG_NAME(set_up)(size_t n, uint64_t seed)
{
    DSG_NAME(data) d = {.n = n};
    d.x = DSG_NAME(random_array)(B * n, &seed);
    d.a = DSG_NAME(random_array)(B * n, &seed);
    d.c = DSG_NAME(random_array)(B * n, &seed);
    d.g = DSG_NAME(random_array)(B * n, &seed);
    return d;
}

static void DSG_NAME(tear_down)(DSG_NAME(data) *d)
{
    free(d->x);
    free(d->a);
    free(d->c);
    free(d->g);
}

/* The images of d from `first` on. */
static DSG_NAME(data) DSG_NAME(from)(const DSG_NAME(data) *d, size_t first)
{
    size_t at = first * d->n;
    return (DSG_NAME(data)){d->n, d->x + at, d->a + at, d->c + at, d->g + at};
}

static dsg_status DSG_NAME(call)(int kind, const DSG_NAME(data) *d, size_t first,
                                 size_t b, const dsg_noise *noise,
                                 const dsg_real *recorded)
{
    switch (kind) {
    case DDPM:
        return DSG_NAME(dsg_ddpm_step)(d->x, d->a, NULL, NULL, NULL, b, d->n, noise,
                                       recorded, &ddpm);
    case DDPM_LEARNED:
        return DSG_NAME(dsg_ddpm_step)(d->x, d->a, d->c, NULL, NULL, b, d->n, noise,
                                       recorded, &ddpm);
    case DDPM_GUIDED:
        return DSG_NAME(dsg_ddpm_step)(d->x, d->a, d->c, d->g, scales + first, b, d->n,
                                       noise, recorded, &ddpm);
    case DDIM:
        return DSG_NAME(dsg_ddim_step)(d->x, d->a, b, d->n, noise, recorded, &ddim);
    case RENOISE:
        return DSG_NAME(dsg_renoise)(d->x, b, d->n, 0.6, 2.5, noise, recorded);
    case ALD:
        return DSG_NAME(dsg_ald_step)(d->x, d->a, d->g, b, d->n, noise, recorded, &ald);
    default:
        return DSG_NAME(dsg_adam_step)(d->x, d->a, d->c, d->g, b, d->n, &adam);
    }
}

/* Entry j, image i, of the new x. */
static double DSG_NAME(expected)(int kind, const DSG_NAME(data) *d, size_t i, size_t j,
                                 double noise)
{
    double x = d->x[j], a = d->a[j], c = d->c[j], g = d->g[j];
    double f = (c + 1) / 2;
    double learned = exp((f * ddpm.maxlog + (1 - f) * ddpm.minlog) / 2);
    switch (kind) {
    case DDPM:
        return 0.3 * a + 0.7 * x + exp(-3.0) * noise;
    case DDPM_LEARNED:
        return 0.3 * a + 0.7 * x + learned * noise;
    case DDPM_GUIDED:
        return 0.3 * a + 0.7 * x + learned * noise - scales[i] * g;
    case DDIM:
        return sqrt(0.7) * a + sqrt(0.21) * (x - sqrt(0.4) * a) / sqrt(0.6) +
               0.3 * noise;
    case RENOISE:
        return 0.6 * x + 2.5 * noise;
    case ALD:
        return x + 0.2 * ((a - x) / 2.25 - 0.8 * g) + sqrt(0.4) * noise;
    default:
        a = 0.9 * a + 0.1 * g;
        c = 0.99 * c + 0.01 * g * g;
        return x - 0.1 * a / (1 - pow(0.9, 3)) / (sqrt(c / (1 - pow(0.99, 3))) + 1e-8);
    }
}

static void DSG_NAME(test_an_update_is_its_formula)(void)
{
    for (size_t s = 0; s < SIZES; s++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int source = 0; source < 3; source++) {
                size_t n = sizes[s];
                DSG_NAME(data) d = DSG_NAME(set_up)(n, s + 1);
                DSG_NAME(data) old = DSG_NAME(set_up)(n, s + 1);
                for (size_t j = 0; kind == ADAM && j < B * n; j++)
                    old.c[j] = d.c[j] = d.c[j] * d.c[j] + (dsg_real)0.1;
                dsg_real *noise = calloc(B * n, sizeof *noise);
                if (source)
                    CHECK(DSG_NAME(dsg_normal_batch)(noise, B, n, &noise_key) ==
                          DSG_OK);
                CHECK(DSG_NAME(call)(kind, &d, 0, B, source == 1 ? &noise_key : NULL,
                                     source == 2 ? noise : NULL) == DSG_OK);
                /* a dozen roundings of terms below 2.5 times a normal; Adam's quotient
                 * is below 3 */
                double worst = 0, tol = 12 * 2.5 * 6.7 * DSG_NAME(epsilon)();
                for (size_t j = 0; j < B * n; j++) {
                    double want = DSG_NAME(expected)(kind, &old, j / n, j, noise[j]);
                    double error = fabs(d.x[j] - want);
                    worst = error <= worst ? worst : error;
                }
                CHECK_NEAR(worst, 0, tol);
                free(noise);
                DSG_NAME(tear_down)(&d);
                DSG_NAME(tear_down)(&old);
            }
}

static void DSG_NAME(test_a_batch_equals_single_images_at_any_thread_count)(void)
{
    const size_t threads[] = {1, 2, 5};
    for (size_t s = 0; s < SIZES; s++)
        for (int kind = 0; kind < KINDS; kind++)
            for (size_t t = 0; t < 3; t++)
                for (int made = 0; made < 2; made++) {
                    size_t n = sizes[s];
                    DSG_NAME(data) batch = DSG_NAME(set_up)(n, s + 1);
                    DSG_NAME(data) loop = DSG_NAME(set_up)(n, s + 1);
                    for (size_t j = 0; j < B * n; j++)
                        batch.c[j] = loop.c[j] = loop.c[j] * loop.c[j];
                    dsg_real *noise = malloc(B * n * sizeof *noise);
                    DSG_NAME(dsg_normal_batch)(noise, B, n, &noise_key);
                    dsg_set_num_threads(threads[t]);
                    CHECK(DSG_NAME(call)(kind, &batch, 0, B, made ? &noise_key : NULL,
                                         made ? NULL : noise) == DSG_OK);
                    for (size_t i = 0; i < B; i++) {
                        /* the other source: numbers count, not where they are from */
                        dsg_noise one = noise_key;
                        one.image += i;
                        one.sample += i;
                        DSG_NAME(data) part = DSG_NAME(from)(&loop, i);
                        CHECK(DSG_NAME(call)(kind, &part, i, 1, made ? NULL : &one,
                                             made ? noise + i * n : NULL) == DSG_OK);
                    }
                    size_t bytes = B * n * sizeof(dsg_real);
                    CHECK(memcmp(batch.x, loop.x, bytes) == 0);
                    CHECK(memcmp(batch.a, loop.a, bytes) == 0);
                    CHECK(memcmp(batch.c, loop.c, bytes) == 0);
                    free(noise);
                    DSG_NAME(tear_down)(&batch);
                    DSG_NAME(tear_down)(&loop);
                }
}

/* lerp goes from the end that is nearer: m is gradient itself for beta1 = 0. */
static void DSG_NAME(test_the_moments_of_adam)(void)
{
    const double betas[] = {0.0, 0.3, 0.5, 0.9, 0.999};
    for (size_t k = 0; k < sizeof betas / sizeof *betas; k++) {
        DSG_NAME(data) d = DSG_NAME(set_up)(37, 5), old = DSG_NAME(set_up)(37, 5);
        dsg_adam_options o = adam;
        o.beta1 = o.beta2 = betas[k];
        CHECK(DSG_NAME(dsg_adam_step)(d.x, d.a, d.c, d.g, B, 37, &o) == DSG_OK);
        for (size_t j = 0; j < B * 37; j++) {
            double g = old.g[j], beta = betas[k], tol = 4 * DSG_NAME(epsilon)();
            CHECK_NEAR(d.a[j], beta * old.a[j] + (1 - beta) * g, tol);
            CHECK_NEAR(d.c[j], beta * old.c[j] + (1 - beta) * g * g, tol);
            CHECK(beta > 0 || d.a[j] == old.g[j]);
        }
        CHECK(memcmp(d.g, old.g, B * 37 * sizeof *d.g) == 0);
        DSG_NAME(tear_down)(&d);
        DSG_NAME(tear_down)(&old);
    }
}

/* The standard deviation over its whole range, x = 0 and n = 1 leaving nothing else. */
static void DSG_NAME(test_the_learned_deviation_is_an_exponential)(void)
{
    enum { N = 4001 };
    const dsg_ddpm_options wide = {.c1 = 0, .c2 = 0, .minlog = -174, .maxlog = 176};
    dsg_real *x = calloc(N, sizeof *x), *one = malloc(N * sizeof *one);
    dsg_real *code = malloc(N * sizeof *code);
    for (size_t j = 0; j < N; j++) {
        one[j] = 1;
        code[j] = (dsg_real)(2.0 * (double)j / (N - 1) - 1);
    }
    CHECK(DSG_NAME(dsg_ddpm_step)(x, one, code, NULL, NULL, 1, N, NULL, one, &wide) ==
          DSG_OK);
    for (size_t j = 0; j < N; j++) {
        double f = ((double)code[j] + 1) / 2, v = (f * 176 - (1 - f) * 174) / 2;
        /* the argument has some roundings of its size, at least of its terms' */
        CHECK_NEAR(x[j] / exp(v), 1, (4 + 3 * 88) * DSG_NAME(epsilon)());
    }
    const dsg_ddpm_options still = {.c1 = 0, .c2 = 0, .minlog = 0, .maxlog = 0};
    code[7] = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_ddpm_step)(x, one, code, NULL, NULL, 1, N, NULL, one, &still) ==
          DSG_OK);
    for (size_t j = 0; j < N; j++)
        CHECK(j == 7 ? isnan(x[j]) : x[j] == 1);
    free(x);
    free(one);
    free(code);
}

static void DSG_NAME(test_wrong_options_are_refused)(void)
{
    DSG_NAME(data) d = DSG_NAME(set_up)(20, 5), old = DSG_NAME(set_up)(20, 5);
    const dsg_ddpm_options no_ddpm[] = {
        {NAN, 1, 0, 0}, {1, INFINITY, 0, 0}, {1, 1, NAN, 0}, {1, 1, 0, -INFINITY}};
    for (size_t k = 0; k < sizeof no_ddpm / sizeof *no_ddpm; k++)
        CHECK(DSG_NAME(dsg_ddpm_step)(d.x, d.a, d.c, NULL, NULL, B, 20, &noise_key,
                                      NULL, &no_ddpm[k]) == DSG_EVALUE);
    const dsg_ddim_options no_ddim[] = {
        {0, 0.5, 0},     {1, 0.5, 0},     {NAN, 0.5, 0},       {0.5, 0, 0},
        {0.5, 1.1, 0},   {0.5, NAN, 0},   {0.5, 0.5, -1},      {0.5, 0.5, 0.71},
        {0.5, 1, 0.001}, {0.5, 0.5, NAN}, {0.5, 0.5, INFINITY}};
    for (size_t k = 0; k < sizeof no_ddim / sizeof *no_ddim; k++)
        CHECK(DSG_NAME(dsg_ddim_step)(d.x, d.a, B, 20, &noise_key, NULL, &no_ddim[k]) ==
              DSG_EVALUE);
    CHECK(DSG_NAME(dsg_renoise)(d.x, B, 20, NAN, 1, &noise_key, NULL) == DSG_EVALUE);
    CHECK(DSG_NAME(dsg_renoise)(d.x, B, 20, 1, INFINITY, NULL, NULL) == DSG_EVALUE);
    const dsg_ald_options no_ald[] = {{0, 1, 1},        {-1, 1, 1},      {NAN, 1, 1},
                                      {1, NAN, 1},      {1, 1, -1},      {1, 1, NAN},
                                      {INFINITY, 1, 1}, {1, 1, INFINITY}};
    for (size_t k = 0; k < sizeof no_ald / sizeof *no_ald; k++)
        CHECK(DSG_NAME(dsg_ald_step)(d.x, d.a, d.g, B, 20, &noise_key, NULL,
                                     &no_ald[k]) == DSG_EVALUE);
    const dsg_adam_options no_adam[] = {
        {0, 0.1, 0.9, 0.9, 0},     {1, -1, 0.9, 0.9, 0},   {1, NAN, 0.9, 0.9, 0},
        {1, 0.1, 1.0, 0.9, 0},     {1, 0.1, -0.1, 0.9, 0}, {1, 0.1, 0.9, 1.0, 0},
        {1, 0.1, 0.9, NAN, 0},     {1, 0.1, 0.9, 0.9, -1}, {1, 0.1, 0.9, 0.9, NAN},
        {1, INFINITY, 0.9, 0.9, 0}};
    for (size_t k = 0; k < sizeof no_adam / sizeof *no_adam; k++)
        CHECK(DSG_NAME(dsg_adam_step)(d.x, d.a, d.c, d.g, B, 20, &no_adam[k]) ==
              DSG_EVALUE);
    for (int kind = 0; kind < ADAM; kind++) {
        DSG_NAME(data) big = d;
        big.n = (size_t)DSG_NOISE_MOST + 1;
        CHECK(DSG_NAME(call)(kind, &big, 0, 1, &noise_key, NULL) == DSG_ESHAPE);
    }
    CHECK(memcmp(d.x, old.x, B * 20 * sizeof *d.x) == 0);

    /* nothing to do, and what may just be */
    for (int kind = 0; kind < KINDS; kind++) {
        DSG_NAME(data) none = {.n = 20};
        CHECK(DSG_NAME(call)(kind, &none, 0, 0, &noise_key, NULL) == DSG_OK);
        none.n = 0;
        CHECK(DSG_NAME(call)(kind, &none, 0, B, &noise_key, NULL) == DSG_OK);
    }
    dsg_noise last = noise_key;
    last.draw = UINT32_MAX;
    CHECK(DSG_NAME(call)(RENOISE, &d, 0, B, &last, NULL) == DSG_OK);
    for (size_t k = 1; k < 100; k++) {
        double next = 0.01 * (double)k;
        dsg_ddim_options all = {0.5, next, sqrt(1 - next)}; /* its square may be more */
        CHECK(DSG_NAME(dsg_ddim_step)(d.x, d.a, B, 20, NULL, NULL, &all) == DSG_OK);
    }
    DSG_NAME(tear_down)(&d);
    DSG_NAME(tear_down)(&old);
}

static void DSG_NAME(test_update_all)(void)
{
    DSG_NAME(test_an_update_is_its_formula)();
    DSG_NAME(test_a_batch_equals_single_images_at_any_thread_count)();
    DSG_NAME(test_the_moments_of_adam)();
    DSG_NAME(test_the_learned_deviation_is_an_exponential)();
    DSG_NAME(test_wrong_options_are_refused)();
}
