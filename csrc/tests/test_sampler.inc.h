/* One batch's data and an operator; noise ids of image i are i + 5 and i. */
typedef struct DSG_NAME(fixture) {
    dsg_shape shape;
    size_t n, m;
    DSG_NAME(dsg_op) *op;
    dsg_real *x0hat, *y;
    dsg_langevin_options options;
    uint32_t image[B], sample[B];
    dsg_noise noise;
} DSG_NAME(fixture);

static void DSG_NAME(set_up)(DSG_NAME(fixture) *f, dsg_shape shape, uint64_t seed)
{
    *f = (DSG_NAME(fixture)){.shape = shape, .n = dsg_shape_size(shape)};
    CHECK(DSG_NAME(dsg_resize_create)(&f->op, shape, 2) == DSG_OK);
    f->m = dsg_shape_size(f->op->out);
    f->x0hat = DSG_NAME(random_array)(B * f->n, &seed);
    f->y = DSG_NAME(random_array)(B * f->m, &seed);
    f->options = (dsg_langevin_options){
        .steps = STEPS, .eta = 0.01, .likelihood = 20.0, .prior = 0.5};
    for (uint32_t i = 0; i < B; i++) {
        f->image[i] = i + 5;
        f->sample[i] = i;
    }
    f->noise =
        (dsg_noise){.seed = 77, .image = f->image, .sample = f->sample, .draw = 2};
}

static void DSG_NAME(tear_down)(DSG_NAME(fixture) *f)
{
    DSG_NAME(dsg_op_destroy)(f->op);
    free(f->x0hat);
    free(f->y);
}

static dsg_real *DSG_NAME(copy)(const dsg_real *x, size_t n)
{
    dsg_real *out = malloc(n * sizeof *out);
    memcpy(out, x, n * sizeof *out);
    return out;
}

/* The steps of image i written out, in the precision of the arrays. */
static double DSG_NAME(naive_langevin)(const DSG_NAME(fixture) *f, dsg_real *x,
                                       size_t i,
                                       const DSG_NAME(dsg_projector) *projector)
{
    dsg_real *g = malloc(f->n * sizeof *g), *noise = malloc(f->n * sizeof *noise);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(f->op), 1);
    void *pws =
        projector ? dsg_alloc(DSG_NAME(dsg_projector_workspace)(projector), 1) : NULL;
    double sqnorm = 0;
    for (uint32_t step = 0; step < STEPS; step++) {
        sqnorm = DSG_NAME(dsg_op_residual_gradient)(f->op, g, x, f->y + i * f->m, ws);
        for (size_t j = 0; j < f->n; j++)
            g[j] = (dsg_real)f->options.likelihood * g[j] +
                   (dsg_real)f->options.prior * (x[j] - f->x0hat[i * f->n + j]);
        if (projector)
            DSG_NAME(dsg_projector_apply)(projector, i, g, pws);
        DSG_NAME(dsg_normal)
        (noise, (dsg_noise_key){77, f->image[i], f->sample[i], 2 + step}, f->n);
        for (size_t j = 0; j < f->n; j++)
            x[j] += (dsg_real)sqrt(2 * f->options.eta) * noise[j] -
                    (dsg_real)f->options.eta * g[j];
    }
    free(g);
    free(noise);
    dsg_free(ws);
    dsg_free(pws);
    return sqnorm;
}

static void DSG_NAME(test_langevin_equals_the_loop_written_out)(void)
{
    const dsg_shape shapes[] = {
        {3, 8, 8}, {1, 2, 2}, {2, 6, 10}, {7, 5, 3}, {3, 24, 16}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int projected = 0; projected < 2; projected++) {
            DSG_NAME(fixture) f;
            DSG_NAME(set_up)(&f, shapes[k], k + 1);
            DSG_NAME(dsg_projector) *p = NULL;
            if (projected) {
                dsg_project_options o = {
                    .energy = 0.9, .rule = DSG_RANK_PER_CHANNEL, .sides = DSG_BOTH};
                CHECK(DSG_NAME(dsg_projector_create)(&p, B, f.shape) == DSG_OK);
                CHECK(DSG_NAME(dsg_projector_prepare)(p, f.x0hat, &o) == DSG_OK);
            }
            dsg_real *x = DSG_NAME(copy)(f.x0hat, B * f.n);
            dsg_real *want = DSG_NAME(copy)(f.x0hat, B * f.n);
            double sqnorm[B] = {NAN, NAN, NAN};
            CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, p, &f.noise,
                                         NULL, &f.options) == DSG_OK);
            /* values of about 1, a few roundings a step */
            double tol = 40 * STEPS * DSG_NAME(epsilon)();
            for (size_t i = 0; i < B; i++) {
                double norm = DSG_NAME(naive_langevin)(&f, want + i * f.n, i, p);
                CHECK_NEAR(sqnorm[i], norm, tol * (1 + norm));
                double worst = 0;
                for (size_t j = i * f.n; j < (i + 1) * f.n; j++)
                    worst = fmax(worst, fabs((double)x[j] - want[j]));
                CHECK(worst <= tol);
            }
            free(x);
            free(want);
            DSG_NAME(dsg_projector_destroy)(p);
            DSG_NAME(tear_down)(&f);
        }
}

static void DSG_NAME(test_batch_equals_single_images_at_any_thread_count)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 14, 12}, 9);
    dsg_real *batch = malloc(B * f.n * sizeof *batch);
    double sqnorm[B], one_sqnorm;
    dsg_real *one = malloc(f.n * sizeof *one);
    const size_t threads[] = {1, 2, 5};
    for (size_t t = 0; t < 3; t++) {
        dsg_set_num_threads(threads[t]);
        memcpy(batch, f.x0hat, B * f.n * sizeof *batch);
        CHECK(DSG_NAME(dsg_langevin)(batch, sqnorm, f.x0hat, f.y, B, f.op, NULL,
                                     &f.noise, NULL, &f.options) == DSG_OK);
        for (size_t i = 0; i < B; i++) {
            dsg_noise noise = f.noise;
            noise.image += i;
            noise.sample += i;
            memcpy(one, f.x0hat + i * f.n, f.n * sizeof *one);
            CHECK(DSG_NAME(dsg_langevin)(one, &one_sqnorm, f.x0hat + i * f.n,
                                         f.y + i * f.m, 1, f.op, NULL, &noise, NULL,
                                         &f.options) == DSG_OK);
            CHECK(memcmp(one, batch + i * f.n, f.n * sizeof *one) == 0);
            CHECK(one_sqnorm == sqnorm[i]);
        }
    }
    free(batch);
    free(one);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_recorded_noise_gives_the_same_as_counted)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){2, 40, 30}, 4);
    dsg_real *recorded = malloc(STEPS * B * f.n * sizeof *recorded);
    for (uint32_t step = 0; step < STEPS; step++) {
        dsg_noise noise = f.noise;
        noise.draw += step;
        CHECK(DSG_NAME(dsg_normal_batch)(recorded + step * B * f.n, B, f.n, &noise) ==
              DSG_OK);
    }
    dsg_real *a = DSG_NAME(copy)(f.x0hat, B * f.n), *b = DSG_NAME(copy)(a, B * f.n);
    double sqnorm[B];
    CHECK(DSG_NAME(dsg_langevin)(a, sqnorm, f.x0hat, f.y, B, f.op, NULL, &f.noise, NULL,
                                 &f.options) == DSG_OK);
    CHECK(DSG_NAME(dsg_langevin)(b, sqnorm, f.x0hat, f.y, B, f.op, NULL, NULL, recorded,
                                 &f.options) == DSG_OK);
    /* the vectorised loop may round its last elements differently */
    for (size_t j = 0; j < B * f.n; j++)
        CHECK_NEAR(a[j], b[j], 8 * STEPS * DSG_NAME(epsilon)());
    free(recorded);
    free(a);
    free(b);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_a_diverging_image_is_marked_and_the_others_go_on)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    dsg_real *x = DSG_NAME(copy)(f.x0hat, B * f.n);
    dsg_real *want = DSG_NAME(copy)(f.x0hat, B * f.n);
    x[f.n] = (dsg_real)INFINITY; /* image 1 */
    double sqnorm[B];
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, NULL, &f.noise, NULL,
                                 &f.options) == DSG_OK);
    CHECK(isfinite(sqnorm[0]) && isnan(sqnorm[1]) && isfinite(sqnorm[2]));
    CHECK(DSG_NAME(dsg_langevin)(want, sqnorm, f.x0hat, f.y, B, f.op, NULL, &f.noise,
                                 NULL, &f.options) == DSG_OK);
    CHECK(memcmp(x, want, f.n * sizeof *x) == 0);
    CHECK(memcmp(x + 2 * f.n, want + 2 * f.n, f.n * sizeof *x) == 0);

    /* NaN where the operator cannot see it: behind a mask */
    DSG_NAME(dsg_op) *mask = NULL;
    unsigned char none[36] = {0};
    CHECK(DSG_NAME(dsg_mask_create)(&mask, f.shape, none, 1) == DSG_OK);
    dsg_real *y = calloc(B * f.n, sizeof *y);
    x[f.n] = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, y, B, mask, NULL, &f.noise, NULL,
                                 &f.options) == DSG_OK);
    CHECK(isfinite(sqnorm[0]) && isnan(sqnorm[1]) && isfinite(sqnorm[2]));
    DSG_NAME(dsg_op_destroy)(mask);
    free(y);
    free(x);
    free(want);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_euler_step_ends_at_the_denoised_image)(void)
{
    uint64_t seed = 3;
    enum { N = 37 };
    dsg_real *x = DSG_NAME(random_array)(N, &seed),
             *d = DSG_NAME(random_array)(N, &seed);
    dsg_real *start = DSG_NAME(copy)(x, N);
    CHECK(DSG_NAME(dsg_euler_step)(x, d, N, 2.0, 0.5) == DSG_OK);
    for (size_t i = 0; i < N; i++)
        CHECK_NEAR(x[i], start[i] - 0.75 * ((double)start[i] - d[i]),
                   4 * DSG_NAME(epsilon)());
    CHECK(DSG_NAME(dsg_euler_step)(x, d, N, 0.5, 0.0) == DSG_OK);
    for (size_t i = 0; i < N; i++)
        CHECK_NEAR(x[i], d[i], 4 * DSG_NAME(epsilon)());

    const double bad[][2] = {{0, 0},    {-1, 0},  {NAN, 0},      {INFINITY, 0},
                             {1, -0.5}, {1, NAN}, {1, INFINITY}, {INFINITY, INFINITY}};
    memcpy(x, start, N * sizeof *x);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(DSG_NAME(dsg_euler_step)(x, d, N, bad[i][0], bad[i][1]) == DSG_EVALUE);
    CHECK(memcmp(x, start, N * sizeof *x) == 0);
    free(x);
    free(d);
    free(start);
}

static void DSG_NAME(test_wrong_calls_are_refused)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    dsg_real *x = DSG_NAME(copy)(f.x0hat, B * f.n);
    double sqnorm[B];
    dsg_langevin_options bad[6];
    for (size_t i = 0; i < 6; i++)
        bad[i] = f.options;
    bad[0].steps = 0;
    bad[1].eta = 0;
    bad[2].eta = NAN;
    bad[3].eta = INFINITY;
    bad[4].likelihood = NAN;
    bad[5].prior = INFINITY;
    for (size_t i = 0; i < 6; i++)
        CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, NULL, &f.noise,
                                     NULL, &bad[i]) == DSG_EVALUE);
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, NULL, NULL, NULL,
                                 &f.options) == DSG_EVALUE);

    DSG_NAME(dsg_projector) *p = NULL, *other = NULL;
    CHECK(DSG_NAME(dsg_projector_create)(&p, B, f.shape) == DSG_OK);
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, p, &f.noise, NULL,
                                 &f.options) == DSG_ENOTREADY);
    CHECK(DSG_NAME(dsg_projector_create)(&other, B - 1, f.shape) == DSG_OK);
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, other, &f.noise,
                                 NULL, &f.options) == DSG_ESHAPE);
    CHECK(memcmp(x, f.x0hat, B * f.n * sizeof *x) == 0);
    DSG_NAME(dsg_projector_destroy)(p);
    DSG_NAME(dsg_projector_destroy)(other);

    dsg_set_num_threads(2);
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op,
                                                     NULL, &f.noise, NULL, &f.options));
    /* an empty batch needs no noise, but its options must be good */
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, 0, f.op, NULL, &f.noise, NULL,
                                 &f.options) == DSG_OK);
    CHECK(DSG_NAME(dsg_langevin)(NULL, NULL, NULL, NULL, 0, f.op, NULL, NULL, NULL,
                                 &f.options) == DSG_OK);
    CHECK(DSG_NAME(dsg_langevin)(NULL, NULL, NULL, NULL, 0, f.op, NULL, NULL, NULL,
                                 &bad[0]) == DSG_EVALUE);
    free(x);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_noise_does_not_come_round_again)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    dsg_real *x = DSG_NAME(copy)(f.x0hat, B * f.n);
    double sqnorm[B];
    f.noise.draw = UINT32_MAX - (STEPS - 2);
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, NULL, &f.noise, NULL,
                                 &f.options) == DSG_EVALUE);
    CHECK(memcmp(x, f.x0hat, B * f.n * sizeof *x) == 0);
    f.noise.draw--;
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, B, f.op, NULL, &f.noise, NULL,
                                 &f.options) == DSG_OK);

    size_t most = DSG_NOISE_MOST;
    CHECK(DSG_NAME(dsg_normal_batch)(NULL, 1, most + 1, &f.noise) == DSG_ESHAPE);
    DSG_NAME(dsg_op) big = *f.op;
    big.in = (dsg_shape){1, 2, most / 2 + 1};
    CHECK(DSG_NAME(dsg_langevin)(x, sqnorm, f.x0hat, f.y, 1, &big, NULL, &f.noise, NULL,
                                 &f.options) == DSG_ESHAPE);
    free(x);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_sampler_all)(void)
{
    DSG_NAME(test_noise_does_not_come_round_again)();
    DSG_NAME(test_langevin_equals_the_loop_written_out)();
    DSG_NAME(test_batch_equals_single_images_at_any_thread_count)();
    DSG_NAME(test_recorded_noise_gives_the_same_as_counted)();
    DSG_NAME(test_a_diverging_image_is_marked_and_the_others_go_on)();
    DSG_NAME(test_euler_step_ends_at_the_denoised_image)();
    DSG_NAME(test_wrong_calls_are_refused)();
}
