/* Rounding of one output, |x| <= 1: a sum of kh * kw terms directly; through two
 * transforms log2(n) steps relative to the norms of kernel and padded image. */
static double DSG_NAME(blur_tolerance)(const double *kernel, dsg_shape s,
                                       const dsg_blur_geometry *g, dsg_blur_form form)
{
    double one = 0.0, two = 0.0;
    double n = (double)((s.h + g->grow_h + g->kh) * (s.w + g->grow_w + g->kw));
    for (size_t i = 0; i < g->kh * g->kw; i++) {
        one += fabs(kernel[i]);
        two += kernel[i] * kernel[i];
    }
    double direct = 4 * DSG_NAME(epsilon)() * (double)(g->kh * g->kw) * one;
    double fft = 8 * DSG_NAME(epsilon)() * (log2(n) + 3) * sqrt(two * n);
    return form == DSG_BLUR_FFT ? fft : direct;
}

static void DSG_NAME(test_one_blur)(dsg_shape shape, const dsg_blur_geometry *g,
                                    enum kernel_kind kind, dsg_blur_form form,
                                    uint64_t seed)
{
    double *kernel = malloc(g->kh * g->kw * sizeof *kernel);
    make_kernel(kernel, g->kh, g->kw, kind, &seed);

    DSG_NAME(dsg_op) *op = NULL;
    dsg_status err = DSG_NAME(dsg_blur_create)(&op, shape, kernel, g, form);
    if (form == DSG_BLUR_SEPARABLE && err == DSG_EVALUE && !kind_is_separable(kind)) {
        /* a row or a column of anything is separable, larger random kernels are not */
        CHECK(g->kh > 1 && g->kw > 1 && op == NULL);
        free(kernel);
        return;
    }
    CHECK(err == DSG_OK);
    dsg_blur_form got = DSG_NAME(dsg_blur_get_form)(op);
    if (form == DSG_BLUR_EXACT)
        CHECK(got == DSG_BLUR_SPARSE || got == DSG_BLUR_FFT);
    else
        CHECK(form == DSG_BLUR_AUTO || got == form);
    CHECK(op->in.c == shape.c && op->in.h == shape.h && op->in.w == shape.w);
    CHECK(op->out.c == shape.c && op->out.h == shape.h + g->grow_h);
    CHECK(op->out.w == shape.w + g->grow_w);
    CHECK(op->class->linear);

    size_t n = dsg_shape_size(shape), m = dsg_shape_size(op->out);
    dsg_real *x = DSG_NAME(random_array)(n, &seed), *y = DSG_NAME(nan_array)(m);
    double *exact = malloc(n * sizeof *exact), *want = malloc(m * sizeof *want);
    for (size_t i = 0; i < n; i++)
        exact[i] = x[i];
    ref_blur(want, exact, kernel, shape, g);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    double tolerance =
        DSG_NAME(blur_tolerance)(kernel, shape, g, DSG_NAME(dsg_blur_get_form)(op));
    double worst = 0.0;
    for (size_t i = 0; i < m; i++) {
        double d = fabs(want[i] - y[i]);
        worst = d <= worst ? worst : d;
    }
    CHECK_NEAR(worst, 0.0, tolerance);

    /* the adjoint sums over all places that show a pixel; the residual's adjoint has
     * entries up to sum |k| + 1 */
    double sum = 1.0;
    for (size_t i = 0; i < g->kh * g->kw; i++)
        sum += fabs(kernel[i]);
    DSG_NAME(check_adjoint)(op, (double)folds(shape, g) * tolerance * sum, seed);
    if (g->border == DSG_BORDER_REFLECT && (kind == GAUSSIAN || kind == DENSE))
        DSG_NAME(check_batch)(op, seed);

    dsg_free(ws);
    free(x);
    free(y);
    free(exact);
    free(want);
    free(kernel);
    DSG_NAME(dsg_op_destroy)(op);
}

static void DSG_NAME(test_all_kernels)(dsg_shape shape, const dsg_blur_geometry *g,
                                       uint64_t *seed)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (int form = DSG_BLUR_AUTO; form <= DSG_BLUR_EXACT; form++) {
            DSG_NAME(test_one_blur)
            (shape, g, (enum kernel_kind)kind, (dsg_blur_form)form, (*seed)++);
        }
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
        for (int border = 0; border < BORDERS; border++) {
            dsg_blur_geometry g = centred(cases[i].kh, cases[i].kw, (dsg_border)border);
            DSG_NAME(test_all_kernels)(cases[i].shape, &g, &seed);
        }
}

/* Every corner of the kernel as its centre, outputs that grow, and, where the border
 * allows it, pads of several times the image. */
static void DSG_NAME(test_blur_geometries)(void)
{
    static const struct {
        dsg_shape shape;
        dsg_blur_geometry g;
    } cases[] = {
        {{1, 5, 6}, {4, 3, 0, 0, 1, 0, DSG_BORDER_REFLECT}},
        {{2, 6, 5}, {4, 4, 3, 3, 0, 2, DSG_BORDER_REFLECT}},
        {{1, 20, 23}, {16, 16, 8, 8, 1, 1, DSG_BORDER_REFLECT}},
        {{1, 7, 7}, {2, 3, 1, 2, 2, 3, DSG_BORDER_REFLECT}},
        {{1, 6, 18}, {5, 9, 4, 0, 5, 9, DSG_BORDER_REFLECT}},
        {{1, 1, 1}, {3, 4, 1, 3, 0, 0, DSG_BORDER_CIRCULAR}},
        {{3, 1, 2}, {1, 7, 0, 5, 1, 4, DSG_BORDER_CIRCULAR}},
        {{2, 3, 5}, {17, 23, 16, 2, 0, 0, DSG_BORDER_CIRCULAR}},
        {{1, 9, 4}, {4, 11, 0, 10, 3, 1, DSG_BORDER_CIRCULAR}},
        {{1, 16, 24}, {6, 5, 2, 1, 0, 0, DSG_BORDER_CIRCULAR}},
        {{1, 1, 1}, {4, 3, 2, 0, 4, 3, DSG_BORDER_ZERO}},
        {{1, 20, 18}, {16, 16, 7, 7, 0, 0, DSG_BORDER_ZERO}},
        {{2, 3, 2}, {9, 13, 8, 1, 2, 0, DSG_BORDER_ZERO}},
        {{1, 12, 33}, {3, 8, 0, 7, 1, 8, DSG_BORDER_ZERO}},
        {{1, 1, 1}, {3, 5, 2, 1, 0, 0, DSG_BORDER_REPLICATE}},
        {{2, 2, 3}, {11, 14, 3, 13, 1, 1, DSG_BORDER_REPLICATE}},
        {{1, 19, 8}, {7, 6, 0, 0, 7, 0, DSG_BORDER_REPLICATE}},
    };
    uint64_t seed = 10000;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        DSG_NAME(test_all_kernels)(cases[i].shape, &cases[i].g, &seed);
}

static void DSG_NAME(test_auto_takes_the_form_that_fits)(void)
{
    enum { SIDE = 61 };
    static double kernel[SIDE * SIDE];
    dsg_shape shape = {.c = 3, .h = 128, .w = 128};
    dsg_blur_geometry g = centred(SIDE, SIDE, DSG_BORDER_REFLECT);
    uint64_t seed = 3;
    static const struct {
        enum kernel_kind kind;
        dsg_blur_form form;
    } cases[] = {{GAUSSIAN, DSG_BLUR_SEPARABLE}, {DENSE, DSG_BLUR_FFT}};
    DSG_NAME(dsg_op) *op = NULL;
    for (size_t i = 0; i < 2; i++) {
        make_kernel(kernel, SIDE, SIDE, cases[i].kind, &seed);
        CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_AUTO) ==
              DSG_OK);
        CHECK(DSG_NAME(dsg_blur_get_form)(op) == cases[i].form);
        DSG_NAME(dsg_op_destroy)(op);
    }
    for (size_t i = 0; i < SIDE * SIDE; i++)
        kernel[i] = i % 97 == 0; /* 39 taps */
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_AUTO) == DSG_OK);
    CHECK(DSG_NAME(dsg_blur_get_form)(op) == DSG_BLUR_SPARSE);
    DSG_NAME(dsg_op_destroy)(op);
}

/* Kernels 3 % of the tolerance apart from it on either side. */
static void DSG_NAME(test_separable_up_to_the_tolerance)(void)
{
    dsg_shape shape = {.c = 1, .h = 9, .w = 9};
    double kernel[9] = {1, 2, 1, 2, 4, 2, 1, 2, 1}; /* norm 6 */
    DSG_NAME(dsg_op) *op = NULL;
    dsg_blur_geometry g = centred(3, 3, DSG_BORDER_REFLECT);
    double limit = 6 * (DSG_PRECISION == 32 ? 1e-6 : 2.5e-7);
    kernel[0] = 1 + 0.97 * limit;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_SEPARABLE) ==
          DSG_OK);
    DSG_NAME(dsg_op_destroy)(op);
    kernel[0] = 1 + 1.03 * limit;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_SEPARABLE) ==
          DSG_EVALUE);
}

/* A kernel so near a product that `auto` replaces it: `exact` shows the difference. */
static void DSG_NAME(test_the_exact_form_takes_every_entry_as_it_is)(void)
{
    dsg_shape shape = {.c = 1, .h = 3, .w = 3};
    double kernel[9] = {1, 2, 1, 2, 4, 2, 1, 2, 1};
    double step = DSG_PRECISION == 32 ? 0x1p-20 : 0x1p-24;
    dsg_real x[9] = {1}, y[9]; /* the pixel in the corner, zeros around */
    kernel[0] = 1 + step;
    dsg_blur_geometry g = centred(3, 3, DSG_BORDER_ZERO);
    static const dsg_blur_form forms[] = {DSG_BLUR_AUTO, DSG_BLUR_EXACT};
    for (size_t i = 0; i < 2; i++) {
        DSG_NAME(dsg_op) *op = NULL;
        CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, forms[i]) == DSG_OK);
        CHECK(DSG_NAME(dsg_op_forward_batch)(op, y, x, 1) == DSG_OK);
        /* y[1, 1] meets the pixel with kernel[0, 0], next to no other */
        CHECK((y[4] == (dsg_real)(1 + step)) == (forms[i] == DSG_BLUR_EXACT));
        DSG_NAME(dsg_op_destroy)(op);
    }
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
            dsg_blur_geometry g = centred(size, size, DSG_BORDER_REFLECT);
            CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g,
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
        for (int i = 0; i < 2 * BORDERS; i++) {
            dsg_shape shape = i % 2 ? tall : wide;
            dsg_blur_geometry g = centred(3, 3, (dsg_border)(i / 2));
            DSG_NAME(dsg_op) *op = NULL;
            CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_AUTO) ==
                  DSG_OK);
            DSG_NAME(dsg_op_destroy)(op);
            CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_FFT) ==
                  DSG_ESHAPE);
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
    for (int i = 0; i < 2 * BORDERS; i++) {
        dsg_blur_form form = i % 2 ? DSG_BLUR_SPARSE : DSG_BLUR_FFT;
        dsg_blur_geometry g5 = centred(5, 5, (dsg_border)(i / 2));
        dsg_blur_geometry g17 = centred(17, 17, (dsg_border)(i / 2));
        DSG_NAME(dsg_op) *a = NULL, *b = NULL;
        CHECK(DSG_NAME(dsg_blur_create)(&a, shape, small, &g5, form) == DSG_OK);
        CHECK(DSG_NAME(dsg_blur_create)(&b, shape, large, &g17, form) == DSG_OK);
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

/* Both ways of computing it: few and many sums. */
static void DSG_NAME(test_kernel_gradient)(void)
{
    static const struct {
        dsg_shape shape;
        dsg_blur_geometry g;
    } cases[] = {
        {{1, 1, 1}, {1, 1, 0, 0, 0, 0, DSG_BORDER_REFLECT}},
        {{1, 1, 1}, {5, 4, 0, 3, 1, 2, DSG_BORDER_REPLICATE}},
        {{3, 9, 130}, {3, 2, 1, 0, 0, 0, DSG_BORDER_REFLECT}},
        {{2, 8, 16}, {8, 16, 4, 8, 1, 1, DSG_BORDER_CIRCULAR}},
        {{7, 13, 2}, {9, 17, 8, 0, 2, 3, DSG_BORDER_ZERO}},
        {{2, 31, 37}, {24, 24, 12, 12, 1, 1, DSG_BORDER_REFLECT}},
        {{1, 29, 41}, {40, 33, 0, 30, 0, 0, DSG_BORDER_ZERO}},
        {{3, 16, 11}, {48, 35, 47, 2, 1, 0, DSG_BORDER_CIRCULAR}},
        {{1, 23, 30}, {32, 48, 5, 47, 4, 7, DSG_BORDER_REPLICATE}},
    };
    uint64_t seed = 11;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        dsg_shape s = cases[k].shape;
        const dsg_blur_geometry *g = &cases[k].g;
        size_t n = dsg_shape_size(s), m = s.c * (s.h + g->grow_h) * (s.w + g->grow_w);
        size_t taps = g->kh * g->kw;
        dsg_real *x = DSG_NAME(random_array)(n, &seed);
        dsg_real *v = DSG_NAME(random_array)(m, &seed);
        dsg_real *got = DSG_NAME(nan_array)(taps + 1);
        double *exact = malloc((n + m + taps) * sizeof *exact);
        double *exact_v = exact + n, *want = exact_v + m;
        for (size_t i = 0; i < n; i++)
            exact[i] = x[i];
        for (size_t i = 0; i < m; i++)
            exact_v[i] = v[i];
        ref_kernel_gradient(want, exact, exact_v, s, g);
        CHECK(DSG_NAME(dsg_blur_kernel_gradient)(got, x, v, s, g) == DSG_OK);
        /* m products of at most 1; sums of 64 and three transforms are more exact */
        double worst = 0.0;
        for (size_t i = 0; i < taps; i++) {
            double d = fabs(want[i] - got[i]);
            worst = d <= worst ? worst : d;
        }
        CHECK_NEAR(worst, 0.0, DSG_NAME(epsilon)() * (double)(m + 8));
        CHECK(isnan(got[taps])); /* what lies behind is left alone */
        CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_blur_kernel_gradient)(got, x, v, s, g));
        free(x);
        free(v);
        free(got);
        free(exact);
    }
}

/* Whatever is wrong with a shape or a geometry, create and the gradient say so. */
static void DSG_NAME(check_refused)(dsg_shape shape, dsg_blur_geometry g,
                                    dsg_status want)
{
    static const double kernel[32 * 32];
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, DSG_BLUR_AUTO) == want);
    CHECK(op == NULL);
    CHECK(DSG_NAME(dsg_blur_kernel_gradient)(NULL, NULL, NULL, shape, &g) == want);
}

static void DSG_NAME(test_refused_geometries)(void)
{
    dsg_shape shape = {.c = 3, .h = 10, .w = 12}, s;
    dsg_blur_geometry plain = centred(5, 5, DSG_BORDER_REFLECT), g;
    s = shape, s.c = 0;
    DSG_NAME(check_refused)(s, plain, DSG_ESHAPE);
    s = shape, s.h = 0;
    DSG_NAME(check_refused)(s, plain, DSG_ESHAPE);
    s = shape, s.w = 0;
    DSG_NAME(check_refused)(s, plain, DSG_ESHAPE);
    s = shape, s.h = SIZE_MAX / 30;
    DSG_NAME(check_refused)(s, plain, DSG_ESHAPE);
    g = plain, g.kh = 0;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.kw = 0;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.kh = g.kw = (size_t)1 << 32;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.centre_row = 5;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.centre_column = 5;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.grow_h = 6, g.border = DSG_BORDER_ZERO;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.grow_w = 6, g.border = DSG_BORDER_ZERO;
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = plain, g.border = (dsg_border)BORDERS;
    DSG_NAME(check_refused)(shape, g, DSG_EVALUE);
    g = plain, g.border = (dsg_border)-1;
    DSG_NAME(check_refused)(shape, g, DSG_EVALUE);
    /* a shape that fits, but not once it has grown */
    s = (dsg_shape){1, 1, PTRDIFF_MAX / sizeof(dsg_real) - DSG_ALIGN};
    g = (dsg_blur_geometry){.kh = 1, .kw = 1, .grow_h = 1, .border = DSG_BORDER_ZERO};
    DSG_NAME(check_refused)(s, g, DSG_ESHAPE);

    /* reflections of 9 rows and 11 columns fit, of 10 and 12 do not; the kernel is 0
     * and needs none of them */
    DSG_NAME(check_refused)(shape, centred(20, 1, DSG_BORDER_REFLECT), DSG_ESHAPE);
    DSG_NAME(check_refused)(shape, centred(21, 1, DSG_BORDER_REFLECT), DSG_ESHAPE);
    DSG_NAME(check_refused)(shape, centred(1, 24, DSG_BORDER_REFLECT), DSG_ESHAPE);
    DSG_NAME(check_refused)(shape, centred(1, 25, DSG_BORDER_REFLECT), DSG_ESHAPE);
    g = (dsg_blur_geometry){.kh = 11, .kw = 1};
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = (dsg_blur_geometry){.kh = 10, .kw = 1, .grow_h = 1};
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = (dsg_blur_geometry){.kh = 1, .kw = 13};
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
    g = (dsg_blur_geometry){.kh = 1, .kw = 12, .grow_w = 1};
    DSG_NAME(check_refused)(shape, g, DSG_ESHAPE);
}

static void DSG_NAME(test_blur_errors)(void)
{
    dsg_shape shape = {.c = 3, .h = 10, .w = 12};
    double kernel[19 * 23] = {0};
    uint64_t seed = 4;
    DSG_NAME(dsg_op) *op = NULL;
    dsg_blur_geometry g = centred(5, 5, DSG_BORDER_REFLECT);
    make_kernel(kernel, 5, 5, DENSE, &seed);
#define CREATE(form) DSG_NAME(dsg_blur_create)(&op, shape, kernel, &g, form)
    CHECK(CREATE(DSG_BLUR_SEPARABLE) == DSG_EVALUE);
    CHECK(CREATE((dsg_blur_form)5) == DSG_EVALUE);
    kernel[7] = NAN;
    CHECK(CREATE(DSG_BLUR_AUTO) == DSG_ENONFINITE);
    kernel[7] = -INFINITY;
    CHECK(CREATE(DSG_BLUR_SPARSE) == DSG_ENONFINITE);
    CHECK(op == NULL);

    g = centred(19, 23, DSG_BORDER_REFLECT);
    make_kernel(kernel, 19, 23, GAUSSIAN, &seed);
    CHECK(CREATE(DSG_BLUR_FFT) == DSG_OK); /* its plan is now cached */
    DSG_NAME(dsg_op_destroy)(op);
    for (int form = DSG_BLUR_AUTO; form <= DSG_BLUR_EXACT; form++) {
        size_t live = dsg_alloc_live();
        CHECK_ALLOCATION_FAILURES(CREATE((dsg_blur_form)form));
        DSG_NAME(dsg_op_destroy)(op);
        CHECK(dsg_alloc_live() == live);
    }
#undef CREATE
}

static void DSG_NAME(test_blur_all)(void)
{
    DSG_NAME(test_blur_shapes)();
    DSG_NAME(test_blur_geometries)();
    DSG_NAME(test_auto_takes_the_form_that_fits)();
    DSG_NAME(test_separable_up_to_the_tolerance)();
    DSG_NAME(test_the_exact_form_takes_every_entry_as_it_is)();
    DSG_NAME(test_a_product_kept_in_float_is_separable)();
    DSG_NAME(test_set_up_does_not_grow_with_the_image)();
    DSG_NAME(test_zero_margins_change_nothing)();
    DSG_NAME(test_kernel_gradient)();
    DSG_NAME(test_refused_geometries)();
    DSG_NAME(test_blur_errors)();
}
