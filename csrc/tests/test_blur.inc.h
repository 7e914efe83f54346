/* Rounding of one output, |x| <= 1: a sum of kh * kw terms directly; through two
 * transforms log2(n) steps relative to the norms of kernel and padded image. */
static double DSG_NAME(blur_tolerance)(const double *kernel, dsg_shape s, size_t kh,
                                       size_t kw, dsg_blur_form form)
{
    double one = 0.0, two = 0.0, n = (double)((s.h + kh) * (s.w + kw));
    for (size_t i = 0; i < kh * kw; i++) {
        one += fabs(kernel[i]);
        two += kernel[i] * kernel[i];
    }
    double direct = 4 * DSG_NAME(epsilon)() * (double)(kh * kw) * one;
    double fft = 8 * DSG_NAME(epsilon)() * (log2(n) + 3) * sqrt(two * n);
    return form == DSG_BLUR_FFT ? fft : direct;
}

static void DSG_NAME(test_one_blur)(dsg_shape shape, size_t kh, size_t kw,
                                    enum kernel_kind kind, dsg_blur_form form,
                                    uint64_t seed)
{
    size_t n = dsg_shape_size(shape);
    double *kernel = malloc(kh * kw * sizeof *kernel);
    make_kernel(kernel, kh, kw, kind, &seed);

    DSG_NAME(dsg_op) *op = NULL;
    dsg_status err = DSG_NAME(dsg_blur_create)(&op, shape, kernel, kh, kw, form);
    if (form == DSG_BLUR_SEPARABLE && err == DSG_EVALUE && !kind_is_separable(kind)) {
        /* a row or a column of anything is separable, larger random kernels are not */
        CHECK(kh > 1 && kw > 1 && op == NULL);
        free(kernel);
        return;
    }
    CHECK(err == DSG_OK);
    CHECK(form == DSG_BLUR_AUTO || DSG_NAME(dsg_blur_get_form)(op) == form);
    CHECK(op->out.c == shape.c && op->out.h == shape.h && op->out.w == shape.w);
    CHECK(op->class->linear);

    dsg_real *x = DSG_NAME(random_array)(n, &seed), *y = DSG_NAME(nan_array)(n);
    double *exact = malloc(n * sizeof *exact), *want = malloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++)
        exact[i] = x[i];
    ref_blur(want, exact, kernel, (long)shape.c, (long)shape.h, (long)shape.w, (long)kh,
             (long)kw);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    double tolerance = DSG_NAME(blur_tolerance)(kernel, shape, kh, kw,
                                                DSG_NAME(dsg_blur_get_form)(op));
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs(want[i] - y[i]);
        worst = d <= worst ? worst : d;
    }
    CHECK_NEAR(worst, 0.0, tolerance);

    /* the adjoint sums over up to four reflections of every pixel; the residual's
     * adjoint has entries up to sum |k| + 1 */
    double sum = 1.0;
    for (size_t i = 0; i < kh * kw; i++)
        sum += fabs(kernel[i]);
    DSG_NAME(check_adjoint)(op, 4 * tolerance * sum, seed);
    if (kind == GAUSSIAN || kind == DENSE)
        DSG_NAME(check_batch)(op, seed);

    dsg_free(ws);
    free(x);
    free(y);
    free(exact);
    free(want);
    free(kernel);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_blur_shapes)(void)
{
    static const struct {
        dsg_shape shape;
        size_t kh, kw;
    } cases[] = {{{1, 1, 1}, 1, 1},    {{2, 2, 2}, 2, 3},    {{3, 1, 5}, 1, 4},
                 {{3, 7, 1}, 5, 1},    {{7, 8, 16}, 3, 5},   {{3, 17, 13}, 9, 9},
                 {{1, 31, 33}, 11, 8}, {{2, 9, 37}, 17, 2},  {{1, 26, 64}, 7, 21},
                 {{1, 24, 29}, 6, 6},  {{1, 11, 10}, 21, 19}};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int form = DSG_BLUR_AUTO; form <= DSG_BLUR_FFT; form++) {
                DSG_NAME(test_one_blur)
                (cases[i].shape, cases[i].kh, cases[i].kw, (enum kernel_kind)kind,
                 (dsg_blur_form)form, seed++);
            }
}

static void DSG_NAME(test_auto_takes_the_form_that_fits)(void)
{
    enum { SIDE = 61 };
    static double kernel[SIDE * SIDE];
    dsg_shape shape = {.c = 3, .h = 128, .w = 128};
    uint64_t seed = 3;
    static const struct {
        enum kernel_kind kind;
        dsg_blur_form form;
    } cases[] = {{GAUSSIAN, DSG_BLUR_SEPARABLE}, {DENSE, DSG_BLUR_FFT}};
    DSG_NAME(dsg_op) *op = NULL;
    for (size_t i = 0; i < 2; i++) {
        make_kernel(kernel, SIDE, SIDE, cases[i].kind, &seed);
        CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, SIDE, SIDE,
                                        DSG_BLUR_AUTO) == DSG_OK);
        CHECK(DSG_NAME(dsg_blur_get_form)(op) == cases[i].form);
        DSG_NAME(dsg_op_destroy)(op);
    }
    for (size_t i = 0; i < SIDE * SIDE; i++)
        kernel[i] = i % 97 == 0; /* 39 taps */
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, SIDE, SIDE, DSG_BLUR_AUTO) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_blur_get_form)(op) == DSG_BLUR_SPARSE);
    DSG_NAME(dsg_op_destroy)(op);
}

/* Kernels 3 % of the tolerance apart from it on either side. */
static void DSG_NAME(test_separable_up_to_the_tolerance)(void)
{
    dsg_shape shape = {.c = 1, .h = 9, .w = 9};
    double kernel[9] = {1, 2, 1, 2, 4, 2, 1, 2, 1}; /* norm 6 */
    DSG_NAME(dsg_op) *op = NULL;
    double limit = 6 * (DSG_PRECISION == 32 ? 1e-6 : 2.5e-7);
    kernel[0] = 1 + 0.97 * limit;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, 3, 3, DSG_BLUR_SEPARABLE) ==
          DSG_OK);
    DSG_NAME(dsg_op_destroy)(op);
    kernel[0] = 1 + 1.03 * limit;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, 3, 3, DSG_BLUR_SEPARABLE) ==
          DSG_EVALUE);
}

static void DSG_NAME(test_a_product_kept_in_float_is_separable)(void)
{
    dsg_shape shape = {.c = 1, .h = 40, .w = 40};
    uint64_t seed = 6;
    for (size_t size = 1; size <= 41; size += 4)
        for (size_t trial = 0; trial < 20; trial++) {
            double kernel[41 * 41];
            make_kernel(kernel, size, size, UNEVEN, &seed);
            for (size_t i = 0; i < size * size; i++)
                kernel[i] = (float)kernel[i];
            DSG_NAME(dsg_op) *op = NULL;
            CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, size, size,
                                            DSG_BLUR_SEPARABLE) == DSG_OK);
            DSG_NAME(dsg_op_destroy)(op);
        }
}

/* Making an operator takes no time and memory in proportion to a side of the image,
 * whatever its form; what FFTW cannot transform is refused. */
static void DSG_NAME(test_set_up_does_not_grow_with_the_image)(void)
{
    dsg_shape wide = {.c = 1, .h = 2, .w = (size_t)1 << 44}, tall = {1, wide.w, 2};
    double kernel[9];
    uint64_t seed = 7;
    for (int kind = 0; kind < KINDS; kind++) {
        make_kernel(kernel, 3, 3, (enum kernel_kind)kind, &seed);
        for (size_t i = 0; i < 2; i++) {
            DSG_NAME(dsg_op) *op = NULL;
            CHECK(DSG_NAME(dsg_blur_create)(&op, i ? tall : wide, kernel, 3, 3,
                                            DSG_BLUR_AUTO) == DSG_OK);
            DSG_NAME(dsg_op_destroy)(op);
            CHECK(DSG_NAME(dsg_blur_create)(&op, i ? tall : wide, kernel, 3, 3,
                                            DSG_BLUR_FFT) == DSG_ESHAPE);
        }
    }
}

/* Zero rows and columns around a kernel change nothing, not even a bit. */
static void DSG_NAME(test_zero_margins_change_nothing)(void)
{
    dsg_shape shape = {.c = 2, .h = 20, .w = 23};
    size_t n = dsg_shape_size(shape);
    uint64_t seed = 8;
    double small[25], large[17 * 17] = {0};
    make_kernel(small, 5, 5, DENSE, &seed);
    for (size_t a = 0; a < 5; a++)
        for (size_t b = 0; b < 5; b++)
            large[(a + 6) * 17 + b + 6] = small[a * 5 + b];
    dsg_real *x = DSG_NAME(random_array)(n, &seed);
    dsg_real *y = DSG_NAME(nan_array)(n), *z = DSG_NAME(nan_array)(n);
    for (int form = DSG_BLUR_SPARSE; form <= DSG_BLUR_FFT; form++) {
        DSG_NAME(dsg_op) *a = NULL, *b = NULL;
        CHECK(DSG_NAME(dsg_blur_create)(&a, shape, small, 5, 5, (dsg_blur_form)form) ==
              DSG_OK);
        CHECK(DSG_NAME(dsg_blur_create)(&b, shape, large, 17, 17,
                                        (dsg_blur_form)form) == DSG_OK);
        CHECK(DSG_NAME(dsg_op_forward_batch)(a, y, x, 1) == DSG_OK);
        CHECK(DSG_NAME(dsg_op_forward_batch)(b, z, x, 1) == DSG_OK);
        CHECK(memcmp(y, z, n * sizeof *y) == 0);
        CHECK(DSG_NAME(dsg_op_vjp_batch)(a, y, NULL, x, 1) == DSG_OK);
        CHECK(DSG_NAME(dsg_op_vjp_batch)(b, z, NULL, x, 1) == DSG_OK);
        CHECK(memcmp(y, z, n * sizeof *y) == 0);
        DSG_NAME(dsg_op_destroy)(a);
        DSG_NAME(dsg_op_destroy)(b);
    }
    free(x);
    free(y);
    free(z);
}

static void DSG_NAME(test_blur_errors)(void)
{
    dsg_shape shape = {.c = 3, .h = 10, .w = 12}, s;
    double kernel[21 * 25] = {0};
    uint64_t seed = 4;
    DSG_NAME(dsg_op) *op = NULL;
    make_kernel(kernel, 5, 5, DENSE, &seed);
#define CREATE(shape_, kh, kw, form) \
    DSG_NAME(dsg_blur_create)(&op, shape_, kernel, kh, kw, form)
    s = shape, s.c = 0;
    CHECK(CREATE(s, 5, 5, DSG_BLUR_AUTO) == DSG_ESHAPE);
    s = shape, s.h = 0;
    CHECK(CREATE(s, 5, 5, DSG_BLUR_AUTO) == DSG_ESHAPE);
    s = shape, s.w = 0;
    CHECK(CREATE(s, 5, 5, DSG_BLUR_AUTO) == DSG_ESHAPE);
    s = shape, s.h = SIZE_MAX / 30;
    CHECK(CREATE(s, 5, 5, DSG_BLUR_AUTO) == DSG_ESHAPE);
    CHECK(CREATE(shape, 0, 5, DSG_BLUR_AUTO) == DSG_ESHAPE);
    CHECK(CREATE(shape, 5, 0, DSG_BLUR_AUTO) == DSG_ESHAPE);
    /* pads of 9 and 11 fit, 10 and 12 do not; an even kernel pads more before */
    CHECK(CREATE(shape, 20, 1, DSG_BLUR_AUTO) == DSG_ESHAPE);
    CHECK(CREATE(shape, 21, 1, DSG_BLUR_AUTO) == DSG_ESHAPE);
    CHECK(CREATE(shape, 1, 24, DSG_BLUR_AUTO) == DSG_ESHAPE);
    CHECK(CREATE(shape, 1, 25, DSG_BLUR_AUTO) == DSG_ESHAPE);
    CHECK(CREATE(shape, 5, 5, DSG_BLUR_SEPARABLE) == DSG_EVALUE);
    CHECK(CREATE(shape, 5, 5, (dsg_blur_form)4) == DSG_EVALUE);
    kernel[7] = NAN;
    CHECK(CREATE(shape, 5, 5, DSG_BLUR_AUTO) == DSG_ENONFINITE);
    kernel[7] = -INFINITY;
    CHECK(CREATE(shape, 5, 5, DSG_BLUR_SPARSE) == DSG_ENONFINITE);
    CHECK(op == NULL);

    make_kernel(kernel, 19, 23, GAUSSIAN, &seed);
    CHECK(CREATE(shape, 19, 23, DSG_BLUR_FFT) == DSG_OK); /* its plan is now cached */
    DSG_NAME(dsg_op_destroy)(op);
    for (int form = DSG_BLUR_AUTO; form <= DSG_BLUR_FFT; form++) {
        size_t live = dsg_alloc_live();
        CHECK_ALLOCATION_FAILURES(CREATE(shape, 19, 23, (dsg_blur_form)form));
        DSG_NAME(dsg_op_destroy)(op);
        CHECK(dsg_alloc_live() == live);
    }
#undef CREATE
}

static void DSG_NAME(test_blur_all)(void)
{
    DSG_NAME(test_blur_shapes)();
    DSG_NAME(test_auto_takes_the_form_that_fits)();
    DSG_NAME(test_separable_up_to_the_tolerance)();
    DSG_NAME(test_a_product_kept_in_float_is_separable)();
    DSG_NAME(test_set_up_does_not_grow_with_the_image)();
    DSG_NAME(test_zero_margins_change_nothing)();
    DSG_NAME(test_blur_errors)();
}
