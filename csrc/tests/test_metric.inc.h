/* The tests for one precision. */

/* b images around 0.5 and noisy copies of them, the same in both precisions. */
static void DSG_NAME(images)(dsg_real **x, dsg_real **ref, size_t b, dsg_shape s,
                             double noise)
{
    size_t n = b * dsg_shape_size(s);
    uint64_t seed = 11;
    *x = dsg_alloc(n, sizeof **x);
    *ref = dsg_alloc(n, sizeof **ref);
    for (size_t i = 0; i < n; i++) {
        double v = 0.5 + 0.3 * sin(0.37 * (double)i) + 0.1 * utest_random(&seed);
        (*ref)[i] = (float)v;
        (*x)[i] = (float)(v + noise * utest_random(&seed));
    }
}

static double *DSG_NAME(widen)(const dsg_real *x, size_t n)
{
    double *y = dsg_alloc(n, sizeof *y);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i];
    return y;
}

/* Sums are in double: only their order differs from the definitions'. */
static void DSG_NAME(test_against_definitions)(void)
{
    for (size_t t = 0; t < SHAPES; t++) {
        dsg_shape s = shapes[t];
        size_t n = dsg_shape_size(s), plane = s.h * s.w;
        dsg_real *x, *ref;
        DSG_NAME(images)(&x, &ref, 1, s, 0.2);
        double *xd = DSG_NAME(widen)(x, n), *rd = DSG_NAME(widen)(ref, n);

        double mse = 0.0, nmse = 0.0;
        for (size_t c = 0; c < s.c; c++) {
            double error = 0.0, norm = 0.0;
            for (size_t i = c * plane; i < (c + 1) * plane; i++) {
                error += (xd[i] - rd[i]) * (xd[i] - rd[i]);
                norm += rd[i] * rd[i];
            }
            mse += error / (double)n;
            nmse += error / (double)plane / (norm / (double)plane + 1e-6) / (double)s.c;
        }
        double tol = 4.0 * DBL_EPSILON * (double)n, out = NAN;
        CHECK(DSG_NAME(dsg_nmse)(&out, x, ref, 1, s) == DSG_OK);
        CHECK_NEAR(out, nmse, tol * nmse);
        out = NAN;
        CHECK(DSG_NAME(dsg_psnr)(&out, x, ref, 1, s, 2.0, 1e-8) == DSG_OK);
        /* d(10 log10 mse) = 4.3 d(mse) / mse, and the rounding of a value near 30 */
        CHECK_NEAR(out, 10.0 * log10(4.0 / (mse + 1e-8)),
                   5.0 * tol + 64.0 * DBL_EPSILON);

        for (int kind = 0; kind < 2; kind++) {
            size_t taps = kind == DSG_SSIM_UNIFORM ? 7 : 11;
            out = NAN;
            dsg_status err = DSG_NAME(dsg_ssim)(&out, x, ref, 1, s, 1.0, kind);
            if (s.h < taps || s.w < taps) {
                CHECK(err == DSG_ESHAPE);
                continue;
            }
            CHECK(err == DSG_OK);
            /* variances by differences: rounding of 1 over C2 = 9e-4 */
            CHECK_NEAR(out, ref_ssim(xd, rd, s, 1.0, kind), 64.0 * DBL_EPSILON / 9e-4);
        }
        dsg_free(x);
        dsg_free(ref);
        dsg_free(xd);
        dsg_free(rd);
    }
}

static void DSG_NAME(test_closed_forms)(void)
{
    const dsg_shape s = {2, 20, 21};
    size_t n = dsg_shape_size(s);
    dsg_real *x, *ref;
    double out = NAN;
    DSG_NAME(images)(&x, &ref, 1, s, 0.0);

    /* equal images */
    CHECK(DSG_NAME(dsg_psnr)(&out, x, ref, 1, s, 1.0, 0.0) == DSG_OK);
    CHECK(isinf(out) && out > 0);
    CHECK(DSG_NAME(dsg_psnr)(&out, x, ref, 1, s, 1.0, 1e-8) == DSG_OK);
    CHECK_NEAR(out, 80.0, 1e-12);
    CHECK(DSG_NAME(dsg_nmse)(&out, x, ref, 1, s) == DSG_OK && out == 0.0);
    for (int kind = 0; kind < 2; kind++) {
        CHECK(DSG_NAME(dsg_ssim)(&out, x, ref, 1, s, 1.0, kind) == DSG_OK);
        CHECK_NEAR(out, 1.0, 64.0 * DBL_EPSILON);
    }

    /* constants a and b: mse (a - b)^2, and only the luminance term is not 1 */
    for (size_t i = 0; i < n; i++) {
        x[i] = 0.25;
        ref[i] = 0.75;
    }
    CHECK(DSG_NAME(dsg_psnr)(&out, x, ref, 1, s, 1.0, 0.0) == DSG_OK);
    CHECK_NEAR(out, 10.0 * log10(4.0), 1e-13);
    CHECK(DSG_NAME(dsg_nmse)(&out, x, ref, 1, s) == DSG_OK);
    CHECK_NEAR(out, 0.25 / (0.5625 + 1e-6), 1e-13);
    for (int kind = 0; kind < 2; kind++) {
        CHECK(DSG_NAME(dsg_ssim)(&out, x, ref, 1, s, 1.0, kind) == DSG_OK);
        CHECK_NEAR(out, (0.375 + 1e-4) / (0.625 + 1e-4), 64.0 * DBL_EPSILON / 9e-4);
    }
    /* zero reference */
    memset(ref, 0, n * sizeof *ref);
    CHECK(DSG_NAME(dsg_nmse)(&out, x, ref, 1, s) == DSG_OK);
    CHECK_NEAR(out, 0.0625 / 1e-6, 1e-7);
    dsg_free(x);
    dsg_free(ref);
}

/* ssim(a x, a y; a range) = ssim(x, y; range) = ssim(y, x; range); psnr moves with the
 * range. */
static void DSG_NAME(test_scaling_and_symmetry)(void)
{
    const dsg_shape s = {1, 19, 90};
    size_t n = dsg_shape_size(s);
    dsg_real *x, *ref;
    DSG_NAME(images)(&x, &ref, 1, s, 0.3);
    for (int kind = 0; kind < 2; kind++) {
        double a, b, c;
        CHECK(DSG_NAME(dsg_ssim)(&a, x, ref, 1, s, 1.0, kind) == DSG_OK);
        CHECK(DSG_NAME(dsg_ssim)(&b, ref, x, 1, s, 1.0, kind) == DSG_OK);
        CHECK_NEAR(a, b, 64.0 * DBL_EPSILON / 9e-4);
        for (size_t i = 0; i < n; i++) {
            x[i] *= 256;
            ref[i] *= 256;
        }
        CHECK(DSG_NAME(dsg_ssim)(&c, x, ref, 1, s, 256.0, kind) == DSG_OK);
        CHECK_NEAR(a, c, 64.0 * DBL_EPSILON / 9e-4);
        for (size_t i = 0; i < n; i++) {
            x[i] /= 256;
            ref[i] /= 256;
        }
    }
    double a, b;
    CHECK(DSG_NAME(dsg_psnr)(&a, x, ref, 1, s, 1.0, 0.0) == DSG_OK);
    CHECK(DSG_NAME(dsg_psnr)(&b, x, ref, 1, s, 255.0, 0.0) == DSG_OK);
    CHECK_NEAR(b - a, 20.0 * log10(255.0), 1e-12);
    dsg_free(x);
    dsg_free(ref);
}

static dsg_status DSG_NAME(call)(int metric, double *out, const dsg_real *x,
                                 const dsg_real *ref, size_t b, dsg_shape s)
{
    switch (metric) {
    case 0:
        return DSG_NAME(dsg_psnr)(out, x, ref, b, s, 1.0, 0.0);
    case 1:
        return DSG_NAME(dsg_nmse)(out, x, ref, b, s);
    case 2:
        return DSG_NAME(dsg_ssim)(out, x, ref, b, s, 1.0, DSG_SSIM_GAUSSIAN);
    default:
        return DSG_NAME(dsg_ssim)(out, x, ref, b, s, 1.0, DSG_SSIM_UNIFORM);
    }
}

static void DSG_NAME(test_batch_and_threads)(void)
{
    enum { B = 7 };
    const dsg_shape s = {3, 23, 87};
    size_t n = dsg_shape_size(s);
    dsg_real *x, *ref;
    DSG_NAME(images)(&x, &ref, B, s, 0.2);
    for (int metric = 0; metric < 4; metric++) {
        double single[B], batch[B];
        for (size_t i = 0; i < B; i++)
            CHECK(DSG_NAME(call)(metric, &single[i], x + i * n, ref + i * n, 1, s) ==
                  DSG_OK);
        const size_t threads[] = {1, 2, 5};
        for (size_t t = 0; t < 3; t++) {
            dsg_set_num_threads(threads[t]);
            for (size_t i = 0; i < B; i++)
                batch[i] = NAN;
            CHECK(DSG_NAME(call)(metric, batch, x, ref, B, s) == DSG_OK);
            CHECK(memcmp(single, batch, sizeof batch) == 0);
        }
        batch[0] = 42.0;
        CHECK(DSG_NAME(call)(metric, batch, NULL, NULL, 0, s) == DSG_OK);
        CHECK(batch[0] == 42.0);

        /* a NaN stays in its own image */
        dsg_real saved = x[n + 100];
        x[n + 100] = NAN;
        CHECK(DSG_NAME(call)(metric, batch, x, ref, B, s) == DSG_OK);
        CHECK(isnan(batch[1]));
        for (size_t i = 0; i < B; i++)
            CHECK(i == 1 || batch[i] == single[i]);
        x[n + 100] = saved;
    }
    dsg_set_num_threads(2);
    dsg_free(x);
    dsg_free(ref);
}

static void DSG_NAME(test_errors)(void)
{
    dsg_real x[200] = {0};
    double out;
    const double bad[] = {0.0, -1.0, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        CHECK(DSG_NAME(dsg_psnr)(&out, x, x, 1, (dsg_shape){1, 1, 1}, bad[i], 0) ==
              DSG_EVALUE);
        CHECK(DSG_NAME(dsg_ssim)(&out, x, x, 1, (dsg_shape){1, 11, 11}, bad[i], 0) ==
              DSG_EVALUE);
        if (i > 0)
            CHECK(DSG_NAME(dsg_psnr)(&out, x, x, 1, (dsg_shape){1, 1, 1}, 1, bad[i]) ==
                  DSG_EVALUE);
    }
    CHECK(DSG_NAME(dsg_ssim)(&out, x, x, 1, (dsg_shape){1, 11, 11}, 1, 2) ==
          DSG_EVALUE);
    const dsg_shape none[] = {{0, 11, 11}, {1, 0, 11}, {1, 11, 0}, {SIZE_MAX, 11, 11}};
    for (size_t i = 0; i < 4; i++)
        for (int metric = 0; metric < 4; metric++)
            CHECK(DSG_NAME(call)(metric, &out, x, x, 1, none[i]) == DSG_ESHAPE);
    CHECK(DSG_NAME(call)(2, &out, x, x, 1, (dsg_shape){1, 10, 11}) == DSG_ESHAPE);
    CHECK(DSG_NAME(call)(2, &out, x, x, 1, (dsg_shape){1, 11, 10}) == DSG_ESHAPE);
    CHECK(DSG_NAME(call)(3, &out, x, x, 1, (dsg_shape){1, 6, 7}) == DSG_ESHAPE);
    CHECK(DSG_NAME(call)(3, &out, x, x, 1, (dsg_shape){1, 7, 6}) == DSG_ESHAPE);
}

static void DSG_NAME(test_allocation_failures)(void)
{
    const dsg_shape s = {1, 12, 12};
    dsg_real *x, *ref;
    DSG_NAME(images)(&x, &ref, 3, s, 0.1);
    dsg_set_num_threads(1);
    for (int metric = 0; metric < 4; metric++)
        for (size_t k = 1;; k++) {
            double out[3];
            size_t live = dsg_alloc_live(), count = dsg_alloc_count();
            dsg_fail_alloc_after(k);
            dsg_status err = DSG_NAME(call)(metric, out, x, ref, 3, s);
            dsg_fail_alloc_after(0);
            CHECK(dsg_alloc_live() == live);
            if (dsg_alloc_count() - count < k) {
                CHECK(err == DSG_OK);
                break;
            }
            CHECK(err == DSG_ENOMEM);
        }
    dsg_set_num_threads(2);
    dsg_free(x);
    dsg_free(ref);
}

static void DSG_NAME(run)(void)
{
    DSG_NAME(test_against_definitions)();
    DSG_NAME(test_closed_forms)();
    DSG_NAME(test_scaling_and_symmetry)();
    DSG_NAME(test_batch_and_threads)();
    DSG_NAME(test_errors)();
    DSG_NAME(test_allocation_failures)();
}
