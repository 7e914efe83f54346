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

/* What a loop writes: of B images, as it stands before the first step. */
typedef struct DSG_NAME(state) {
    dsg_real *x, *velocity;
    double sqnorm[B], accepted[B];
} DSG_NAME(state);

static DSG_NAME(state) DSG_NAME(start)(const DSG_NAME(fixture) *f)
{
    uint64_t seed = 31;
    DSG_NAME(state)
    s = {.x = DSG_NAME(copy)(f->x0hat, B * f->n),
         .velocity = DSG_NAME(random_array)(B * f->n, &seed)};
    for (size_t i = 0; i < B; i++)
        s.sqnorm[i] = s.accepted[i] = NAN;
    return s;
}

static void DSG_NAME(clear)(DSG_NAME(state) *s)
{
    free(s->x);
    free(s->velocity);
}

/* A loop over b images from number `first` on, with numbers from outside or not. */
static dsg_status DSG_NAME(run)(int kind, const DSG_NAME(fixture) *f,
                                DSG_NAME(state) *s, size_t first, size_t b,
                                const DSG_NAME(dsg_projector) *projector,
                                const dsg_noise *noise, const dsg_real *recorded,
                                const double *uniforms)
{
    size_t at = first * f->n;
    const dsg_real *x0hat = f->x0hat + at, *y = f->y + first * f->m;
    if (kind == LANGEVIN)
        return DSG_NAME(dsg_langevin)(s->x + at, s->sqnorm + first, x0hat, y, b, f->op,
                                      projector, noise, recorded, &f->options);
    if (kind == HMC)
        return DSG_NAME(dsg_hmc)(s->x + at, s->velocity + at, s->sqnorm + first, x0hat,
                                 y, b, f->op, projector, noise, recorded, &f->options,
                                 momentum);
    return DSG_NAME(dsg_mh)(s->x + at, s->sqnorm + first, s->accepted + first, x0hat, y,
                            b, f->op, noise, recorded, uniforms, &f->options);
}

/* Every number of the loop: normals (STEPS, B, n), uniforms (STEPS, B). */
static void DSG_NAME(record)(int kind, const DSG_NAME(fixture) *f, dsg_real *normals,
                             double *uniforms)
{
    for (uint32_t step = 0; step < STEPS; step++) {
        dsg_noise noise = f->noise;
        noise.draw += kind == MH ? 2 * step : step;
        CHECK(DSG_NAME(dsg_normal_batch)(normals + step * B * f->n, B, f->n, &noise) ==
              DSG_OK);
        noise.draw++;
        dsg_uniform_batch(uniforms + step * B, B, &noise);
    }
}

/* 1/2 likelihood ||A(x) - y||^2 + 1/2 prior ||x - x0hat||^2; the first norm apart. */
static double DSG_NAME(energy)(const DSG_NAME(fixture) *f, const dsg_real *x, size_t i,
                               double *sqnorm)
{
    dsg_real *y = malloc(f->m * sizeof *y);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(f->op), 1);
    DSG_NAME(dsg_op_forward)(f->op, y, x, ws);
    double distance = *sqnorm = 0;
    for (size_t j = 0; j < f->m; j++)
        *sqnorm += pow((double)y[j] - f->y[i * f->m + j], 2);
    for (size_t j = 0; j < f->n; j++)
        distance += pow((double)x[j] - f->x0hat[i * f->n + j], 2);
    free(y);
    dsg_free(ws);
    return (f->options.likelihood * *sqnorm + f->options.prior * distance) / 2;
}

/* The steps of image i written out, in the precision of the arrays. */
static void DSG_NAME(naive)(int kind, const DSG_NAME(fixture) *f, DSG_NAME(state) *s,
                            size_t i, const DSG_NAME(dsg_projector) *projector)
{
    dsg_real *x = s->x + i * f->n, *v = s->velocity + i * f->n;
    dsg_real *g = malloc(f->n * sizeof *g), *noise = malloc(f->n * sizeof *noise);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(f->op), 1);
    void *pws =
        projector ? dsg_alloc(DSG_NAME(dsg_projector_workspace)(projector), 1) : NULL;
    const dsg_langevin_options *o = &f->options;
    s->accepted[i] = 0;
    for (uint32_t step = 0; step < STEPS; step++) {
        dsg_noise_key key = {77, f->image[i], f->sample[i],
                             2 + (kind == MH ? 2 * step : step)};
        DSG_NAME(dsg_normal)(noise, key, f->n);
        if (kind == MH) {
            double after, before = DSG_NAME(energy)(f, x, i, &s->sqnorm[i]);
            for (size_t j = 0; j < f->n; j++)
                g[j] = x[j] + (dsg_real)sqrt(o->eta) * noise[j];
            before -= DSG_NAME(energy)(f, g, i, &after);
            key.draw++;
            if (log(dsg_uniform(key)) < before) {
                memcpy(x, g, f->n * sizeof *x);
                s->sqnorm[i] = after;
                s->accepted[i]++;
            }
            continue;
        }
        s->sqnorm[i] =
            DSG_NAME(dsg_op_residual_gradient)(f->op, g, x, f->y + i * f->m, ws);
        for (size_t j = 0; j < f->n; j++)
            g[j] = (dsg_real)o->likelihood * g[j] +
                   (dsg_real)o->prior * (x[j] - f->x0hat[i * f->n + j]);
        if (projector)
            DSG_NAME(dsg_projector_apply)(projector, i, g, pws);
        for (size_t j = 0; j < f->n && kind == LANGEVIN; j++)
            x[j] += (dsg_real)sqrt(2 * o->eta) * noise[j] - (dsg_real)o->eta * g[j];
        for (size_t j = 0; j < f->n && kind == HMC; j++) {
            v[j] = (dsg_real)momentum * v[j] - (dsg_real)sqrt(o->eta) * g[j] +
                   (dsg_real)sqrt(2 * (1 - momentum)) * noise[j];
            x[j] += (dsg_real)sqrt(o->eta) * v[j];
        }
    }
    free(g);
    free(noise);
    dsg_free(ws);
    dsg_free(pws);
}

static void DSG_NAME(test_a_level_equals_the_loop_written_out)(int kind)
{
    const dsg_shape shapes[] = {
        {3, 8, 8}, {1, 2, 2}, {2, 6, 10}, {7, 5, 3}, {3, 24, 16}};
    double proposed = 0, accepted = 0;
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int projected = 0; projected < (kind == MH ? 1 : 2); projected++) {
            DSG_NAME(fixture) f;
            DSG_NAME(set_up)(&f, shapes[k], k + 1);
            DSG_NAME(dsg_projector) *p = NULL;
            if (projected) {
                dsg_project_options o = {
                    .energy = 0.9, .rule = DSG_RANK_PER_CHANNEL, .sides = DSG_BOTH};
                CHECK(DSG_NAME(dsg_projector_create)(&p, B, f.shape) == DSG_OK);
                CHECK(DSG_NAME(dsg_projector_prepare)(p, f.x0hat, &o) == DSG_OK);
            }
            DSG_NAME(state) got = DSG_NAME(start)(&f), want = DSG_NAME(start)(&f);
            CHECK(DSG_NAME(run)(kind, &f, &got, 0, B, p, &f.noise, NULL, NULL) ==
                  DSG_OK);
            /* values of about 1, a few roundings a step */
            double tol = 40 * STEPS * DSG_NAME(epsilon)();
            for (size_t i = 0; i < B; i++) {
                DSG_NAME(naive)(kind, &f, &want, i, p);
                CHECK_NEAR(got.sqnorm[i], want.sqnorm[i], tol * (1 + want.sqnorm[i]));
                double worst = 0;
                for (size_t j = i * f.n; j < (i + 1) * f.n; j++) {
                    worst = fmax(worst, fabs((double)got.x[j] - want.x[j]));
                    if (kind == HMC)
                        worst = fmax(worst,
                                     fabs((double)got.velocity[j] - want.velocity[j]));
                }
                CHECK(worst <= tol);
                CHECK(kind != MH || got.accepted[i] == want.accepted[i]);
                accepted += want.accepted[i];
                proposed += STEPS;
            }
            DSG_NAME(clear)(&got);
            DSG_NAME(clear)(&want);
            DSG_NAME(dsg_projector_destroy)(p);
            DSG_NAME(tear_down)(&f);
        }
    CHECK(kind != MH || (accepted > 0 && accepted < proposed));
}

static void DSG_NAME(test_batch_equals_single_images_at_any_thread_count)(int kind)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 14, 12}, 9);
    size_t bytes = B * f.n * sizeof(dsg_real);
    const size_t threads[] = {1, 2, 5};
    for (size_t t = 0; t < 3; t++) {
        DSG_NAME(state) batch = DSG_NAME(start)(&f), loop = DSG_NAME(start)(&f);
        dsg_set_num_threads(threads[t]);
        CHECK(DSG_NAME(run)(kind, &f, &batch, 0, B, NULL, &f.noise, NULL, NULL) ==
              DSG_OK);
        for (size_t i = 0; i < B; i++) {
            dsg_noise noise = f.noise;
            noise.image += i;
            noise.sample += i;
            CHECK(DSG_NAME(run)(kind, &f, &loop, i, 1, NULL, &noise, NULL, NULL) ==
                  DSG_OK);
        }
        CHECK(memcmp(loop.x, batch.x, bytes) == 0);
        CHECK(memcmp(loop.velocity, batch.velocity, bytes) == 0);
        CHECK(memcmp(loop.sqnorm, batch.sqnorm, sizeof loop.sqnorm) == 0);
        CHECK(kind != MH ||
              memcmp(loop.accepted, batch.accepted, sizeof loop.accepted) == 0);
        DSG_NAME(clear)(&batch);
        DSG_NAME(clear)(&loop);
    }
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_recorded_numbers_give_the_same_as_counted)(int kind)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){2, 40, 30}, 4);
    dsg_real *normals = malloc(STEPS * B * f.n * sizeof *normals);
    double uniforms[STEPS * B];
    DSG_NAME(record)(kind, &f, normals, uniforms);
    DSG_NAME(state) a = DSG_NAME(start)(&f), b = DSG_NAME(start)(&f);
    CHECK(DSG_NAME(run)(kind, &f, &a, 0, B, NULL, &f.noise, NULL, NULL) == DSG_OK);
    CHECK(DSG_NAME(run)(kind, &f, &b, 0, B, NULL, NULL, normals, uniforms) == DSG_OK);
    CHECK(memcmp(a.x, b.x, B * f.n * sizeof *a.x) == 0);
    CHECK(memcmp(a.velocity, b.velocity, B * f.n * sizeof *a.x) == 0);
    CHECK(memcmp(a.sqnorm, b.sqnorm, sizeof a.sqnorm) == 0);
    free(normals);
    DSG_NAME(clear)(&a);
    DSG_NAME(clear)(&b);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_a_diverging_image_is_marked_and_the_others_go_on)(int kind)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    DSG_NAME(state) s = DSG_NAME(start)(&f), want = DSG_NAME(start)(&f);
    s.x[f.n] = (dsg_real)INFINITY; /* image 1 */
    CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, NULL, &f.noise, NULL, NULL) == DSG_OK);
    CHECK(isfinite(s.sqnorm[0]) && isnan(s.sqnorm[1]) && isfinite(s.sqnorm[2]));
    CHECK(kind != MH || s.accepted[1] == 0);
    for (size_t j = f.n + 1; j < 2 * f.n; j++)
        CHECK(s.x[j] == want.x[j] && s.velocity[j] == want.velocity[j]);
    CHECK(DSG_NAME(run)(kind, &f, &want, 0, B, NULL, &f.noise, NULL, NULL) == DSG_OK);
    CHECK(memcmp(s.x, want.x, f.n * sizeof *s.x) == 0);
    CHECK(memcmp(s.x + 2 * f.n, want.x + 2 * f.n, f.n * sizeof *s.x) == 0);

    /* NaN where the operator cannot see it: behind a mask */
    DSG_NAME(fixture) hidden = f;
    unsigned char none[36] = {0};
    CHECK(DSG_NAME(dsg_mask_create)(&hidden.op, f.shape, none, 1) == DSG_OK);
    hidden.m = f.n;
    hidden.y = calloc(B * f.n, sizeof *hidden.y);
    s.x[f.n] = (dsg_real)NAN;
    CHECK(DSG_NAME(run)(kind, &hidden, &s, 0, B, NULL, &f.noise, NULL, NULL) == DSG_OK);
    CHECK(isfinite(s.sqnorm[0]) && isnan(s.sqnorm[1]) && isfinite(s.sqnorm[2]));
    DSG_NAME(dsg_op_destroy)(hidden.op);
    free(hidden.y);
    DSG_NAME(clear)(&s);
    DSG_NAME(clear)(&want);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_a_proposal_is_taken_as_its_number_says)(void)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    dsg_real *normals = malloc(STEPS * B * f.n * sizeof *normals);
    double uniforms[STEPS * B];
    DSG_NAME(record)(MH, &f, normals, uniforms);
    normals[f.n] = (dsg_real)NAN; /* of image 1 */
    for (size_t j = 0; j < STEPS * B; j++)
        uniforms[j] = j % B == 2 ? 1.0 : 0.0; /* logarithms 0 and -infinity */
    DSG_NAME(state) s = DSG_NAME(start)(&f);
    f.options.eta = 4.0; /* far away is always worse */
    CHECK(DSG_NAME(run)(MH, &f, &s, 0, B, NULL, NULL, normals, uniforms) == DSG_OK);
    CHECK(s.accepted[0] == STEPS && s.accepted[1] == STEPS - 1 && s.accepted[2] == 0);
    CHECK(memcmp(s.x + 2 * f.n, f.x0hat + 2 * f.n, f.n * sizeof *s.x) == 0);
    for (size_t i = 0; i < B; i++) {
        double sqnorm;
        DSG_NAME(energy)(&f, s.x + i * f.n, i, &sqnorm);
        CHECK_NEAR(s.sqnorm[i], sqnorm, 8 * (double)f.m * DBL_EPSILON * sqnorm);
    }
    free(normals);
    DSG_NAME(clear)(&s);
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

static void DSG_NAME(test_wrong_calls_are_refused)(int kind)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    DSG_NAME(state) s = DSG_NAME(start)(&f);
    dsg_langevin_options good = f.options, bad[6];
    for (size_t i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].steps = 0;
    bad[1].eta = 0;
    bad[2].eta = NAN;
    bad[3].eta = INFINITY;
    bad[4].likelihood = NAN;
    bad[5].prior = INFINITY;
    for (size_t i = 0; i < 6; i++) {
        f.options = bad[i];
        CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, NULL, &f.noise, NULL, NULL) ==
              DSG_EVALUE);
        CHECK(DSG_NAME(run)(kind, &f, &s, 0, 0, NULL, NULL, NULL, NULL) == DSG_EVALUE);
    }
    f.options = good;
    CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, NULL, NULL, NULL, NULL) == DSG_EVALUE);

    DSG_NAME(dsg_projector) *p = NULL, *other = NULL;
    if (kind != MH) {
        CHECK(DSG_NAME(dsg_projector_create)(&p, B, f.shape) == DSG_OK);
        CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, p, &f.noise, NULL, NULL) ==
              DSG_ENOTREADY);
        CHECK(DSG_NAME(dsg_projector_create)(&other, B - 1, f.shape) == DSG_OK);
        CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, other, &f.noise, NULL, NULL) ==
              DSG_ESHAPE);
    } else {
        /* both or none */
        double u[STEPS * B] = {0};
        dsg_real *n = calloc(STEPS * B * f.n, sizeof *n);
        CHECK(DSG_NAME(run)(MH, &f, &s, 0, B, NULL, &f.noise, n, NULL) == DSG_EVALUE);
        CHECK(DSG_NAME(run)(MH, &f, &s, 0, B, NULL, &f.noise, NULL, u) == DSG_EVALUE);
        free(n);
    }
    const double momenta[] = {-0.1, 1.1, NAN};
    for (size_t i = 0; i < 3; i++)
        CHECK(DSG_NAME(dsg_hmc)(s.x, s.velocity, s.sqnorm, f.x0hat, f.y, B, f.op, NULL,
                                &f.noise, NULL, &f.options, momenta[i]) == DSG_EVALUE);
    CHECK(memcmp(s.x, f.x0hat, B * f.n * sizeof *s.x) == 0);
    DSG_NAME(dsg_projector_destroy)(p);
    DSG_NAME(dsg_projector_destroy)(other);

    dsg_set_num_threads(2);
    CHECK_ALLOCATION_FAILURES(
        DSG_NAME(run)(kind, &f, &s, 0, B, NULL, &f.noise, NULL, NULL));
    /* an empty batch needs no noise, but its options must be good */
    CHECK(DSG_NAME(run)(kind, &f, &s, 0, 0, NULL, &f.noise, NULL, NULL) == DSG_OK);
    CHECK(DSG_NAME(run)(kind, &f, &s, 0, 0, NULL, NULL, NULL, NULL) == DSG_OK);
    DSG_NAME(clear)(&s);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_noise_does_not_come_round_again)(int kind)
{
    DSG_NAME(fixture) f;
    DSG_NAME(set_up)(&f, (dsg_shape){3, 6, 6}, 2);
    DSG_NAME(state) s = DSG_NAME(start)(&f);
    const uint32_t draws = kind == MH ? 2 * STEPS : STEPS;
    f.noise.draw = UINT32_MAX - (draws - 2);
    CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, NULL, &f.noise, NULL, NULL) == DSG_EVALUE);
    CHECK(memcmp(s.x, f.x0hat, B * f.n * sizeof *s.x) == 0);
    f.noise.draw--;
    CHECK(DSG_NAME(run)(kind, &f, &s, 0, B, NULL, &f.noise, NULL, NULL) == DSG_OK);

    size_t most = DSG_NOISE_MOST;
    CHECK(DSG_NAME(dsg_normal_batch)(NULL, 1, most + 1, &f.noise) == DSG_ESHAPE);
    DSG_NAME(dsg_op) big = *f.op;
    big.in = (dsg_shape){1, 2, most / 2 + 1};
    DSG_NAME(fixture) of_big = f;
    of_big.op = &big;
    CHECK(DSG_NAME(run)(kind, &of_big, &s, 0, 1, NULL, &f.noise, NULL, NULL) ==
          DSG_ESHAPE);
    DSG_NAME(clear)(&s);
    DSG_NAME(tear_down)(&f);
}

static void DSG_NAME(test_sampler_all)(void)
{
    for (int kind = 0; kind < KINDS; kind++) {
        DSG_NAME(test_noise_does_not_come_round_again)(kind);
        DSG_NAME(test_a_level_equals_the_loop_written_out)(kind);
        DSG_NAME(test_batch_equals_single_images_at_any_thread_count)(kind);
        DSG_NAME(test_recorded_numbers_give_the_same_as_counted)(kind);
        DSG_NAME(test_a_diverging_image_is_marked_and_the_others_go_on)(kind);
        DSG_NAME(test_wrong_calls_are_refused)(kind);
    }
    DSG_NAME(test_a_proposal_is_taken_as_its_number_says)();
    DSG_NAME(test_euler_step_ends_at_the_denoised_image)();
}
