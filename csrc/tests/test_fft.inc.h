/* Against the definition, summed in double. */
static void DSG_NAME(test_one_fft)(size_t h, size_t w, uint64_t seed)
{
    const double turn = 6.283185307179586;
    size_t half = w / 2 + 1;
    const DSG_NAME(dsg_fft) *plan = NULL, *same = NULL;
    CHECK(DSG_NAME(dsg_fft_get)(&plan, h, w) == DSG_OK);
    size_t live = dsg_alloc_live();
    CHECK(DSG_NAME(dsg_fft_get)(&same, h, w) == DSG_OK);
    CHECK(plan == same && dsg_alloc_live() == live);

    dsg_real *x = dsg_alloc(h * w, sizeof *x), *copy = dsg_alloc(h * w, sizeof *x);
    dsg_real *spectrum = dsg_alloc(2 * h * half, sizeof *spectrum);
    for (size_t i = 0; i < h * w; i++)
        x[i] = copy[i] = (dsg_real)utest_random(&seed);
    for (size_t i = 0; i < 2 * h * half; i++)
        spectrum[i] = (dsg_real)NAN;
    DSG_NAME(dsg_fft_forward)(plan, spectrum, x);

    /* rounding grows with log2(n), relative to the norm of x, which is < sqrt(n) */
    double n = (double)(h * w);
    double tolerance = 4 * DSG_NAME(epsilon)() * (log2(n) + 1) * sqrt(n);
    double worst = 0.0;
    for (size_t k = 0; k < h; k++)
        for (size_t l = 0; l < half; l++) {
            double re = 0.0, im = 0.0;
            for (size_t i = 0; i < h; i++)
                for (size_t j = 0; j < w; j++) {
                    double angle = turn * ((double)(i * k % h) / (double)h +
                                           (double)(j * l % w) / (double)w);
                    re += copy[i * w + j] * cos(angle);
                    im -= copy[i * w + j] * sin(angle);
                }
            double d = hypot(re - spectrum[2 * (k * half + l)],
                             im - spectrum[2 * (k * half + l) + 1]);
            worst = d <= worst ? worst : d;
        }
    CHECK_NEAR(worst, 0.0, tolerance);

    for (size_t i = 0; i < h * w; i++)
        x[i] = (dsg_real)NAN;
    DSG_NAME(dsg_fft_inverse)(plan, x, spectrum);
    worst = 0.0;
    for (size_t i = 0; i < h * w; i++) {
        double d = fabs(x[i] / n - copy[i]);
        worst = d <= worst ? worst : d;
    }
    CHECK_NEAR(worst, 0.0, tolerance / sqrt(n));
    dsg_free(spectrum);
    dsg_free(copy);
    dsg_free(x);
}

static void DSG_NAME(test_one_line)(size_t n, uint64_t seed)
{
    const double turn = 6.283185307179586;
    const DSG_NAME(dsg_fft_line) *plan = NULL, *same = NULL;
    CHECK(DSG_NAME(dsg_fft_line_get)(&plan, n) == DSG_OK);
    size_t live = dsg_alloc_live();
    CHECK(DSG_NAME(dsg_fft_line_get)(&same, n) == DSG_OK);
    CHECK(plan == same && dsg_alloc_live() == live);

    dsg_real *x = dsg_alloc(2 * n, sizeof *x), *copy = dsg_alloc(2 * n, sizeof *x);
    dsg_real *out = dsg_alloc(2 * n, sizeof *out);
    for (size_t i = 0; i < 2 * n; i++)
        x[i] = copy[i] = (dsg_real)utest_random(&seed);

    /* as above; the norm of a complex x is < sqrt(2 n) */
    double tolerance = 4 * DSG_NAME(epsilon)() * (log2((double)n) + 1) * sqrt(2.0 * n);
    for (int sign = -1; sign <= 1; sign += 2) {
        for (size_t i = 0; i < 2 * n; i++)
            out[i] = (dsg_real)NAN;
        if (sign < 0)
            DSG_NAME(dsg_fft_line_forward)(plan, out, x);
        else
            DSG_NAME(dsg_fft_line_inverse)(plan, out, x);
        double worst = 0.0;
        for (size_t k = 0; k < n; k++) {
            double re = 0.0, im = 0.0;
            for (size_t i = 0; i < n; i++) {
                double angle = sign * turn * (double)(i * k % n) / (double)n;
                re += copy[2 * i] * cos(angle) - copy[2 * i + 1] * sin(angle);
                im += copy[2 * i] * sin(angle) + copy[2 * i + 1] * cos(angle);
            }
            double d = hypot(re - out[2 * k], im - out[2 * k + 1]);
            worst = d <= worst ? worst : d;
        }
        CHECK_NEAR(worst, 0.0, tolerance);
        CHECK(memcmp(x, copy, 2 * n * sizeof *x) == 0);
    }
    dsg_free(out);
    dsg_free(copy);
    dsg_free(x);
}

static void *DSG_NAME(ask_for_plans)(void *arg)
{
    (void)arg;
    for (size_t n = 40; n < 56; n++) {
        const DSG_NAME(dsg_fft) *plan = NULL;
        const DSG_NAME(dsg_fft_line) *line = NULL;
        if (DSG_NAME(dsg_fft_get)(&plan, n, n) != DSG_OK ||
            DSG_NAME(dsg_fft_line_get)(&line, n) != DSG_OK)
            return arg;
    }
    return NULL;
}

static void DSG_NAME(test_plans_from_many_threads)(void)
{
    pthread_t threads[4];
    int token = 0;
    size_t live = dsg_alloc_live();
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, DSG_NAME(ask_for_plans), &token) == 0);
    for (size_t i = 0; i < 4; i++) {
        void *failed = &token;
        pthread_join(threads[i], &failed);
        CHECK(failed == NULL);
    }
    CHECK(dsg_alloc_live() == live + 32); /* every size once */
}

static void DSG_NAME(test_fft_errors)(void)
{
    const DSG_NAME(dsg_fft) *plan = NULL;
    CHECK(DSG_NAME(dsg_fft_get)(&plan, 0, 4) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_fft_get)(&plan, 4, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_fft_get)(&plan, (size_t)1 << 31, 1) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_fft_get)(&plan, 1, (size_t)1 << 31) == DSG_ESHAPE);
    CHECK(plan == NULL);
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_fft_get)(&plan, 21, 22));
    const DSG_NAME(dsg_fft_line) *line = NULL;
    CHECK(DSG_NAME(dsg_fft_line_get)(&line, 0) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_fft_line_get)(&line, (size_t)1 << 31) == DSG_ESHAPE);
    CHECK(line == NULL);
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_fft_line_get)(&line, 23));
}

static void DSG_NAME(test_fft_all)(void)
{
    static const size_t sizes[][2] = {{1, 1}, {1, 2},  {2, 1},   {2, 2},  {3, 5},
                                      {5, 8}, {16, 9}, {17, 13}, {24, 36}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        DSG_NAME(test_one_fft)(sizes[i][0], sizes[i][1], i);
    static const size_t lengths[] = {1, 2, 3, 5, 8, 9, 13, 17, 36, 97, 384};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        DSG_NAME(test_one_line)(lengths[i], i);
    DSG_NAME(test_plans_from_many_threads)();
    DSG_NAME(test_fft_errors)();
}
