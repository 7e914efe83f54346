/* The value of one channel at (row, column), and its derivatives to the right and
 * downwards; at a kink those of the cell that begins there. */
static void DSG_NAME(ref_sample)(double out[3], const dsg_real *x, size_t h, size_t w,
                                 double row, double column)
{
    double top = floor(row), left = floor(column), d = row - top, r = column - left;
    double p[2][2] = {{0}};
    for (int a = 0; a < 2; a++)
        for (int b = 0; b < 2; b++)
            if (top + a >= 0 && top + a < (double)h && left + b >= 0 &&
                left + b < (double)w)
                p[a][b] = x[(size_t)(top + a) * w + (size_t)(left + b)];
    out[0] = (1 - d) * ((1 - r) * p[0][0] + r * p[0][1]) +
             d * ((1 - r) * p[1][0] + r * p[1][1]);
    out[1] = (1 - d) * (p[0][1] - p[0][0]) + d * (p[1][1] - p[1][0]);
    out[2] = (1 - r) * (p[1][0] - p[0][0]) + r * (p[1][1] - p[0][1]);
}

/* Whole pixels, fractions, the very edges of the image, and far, far outside. */
static dsg_real *DSG_NAME(make_displacement)(size_t h, size_t w, uint64_t *seed)
{
    size_t n = h * w;
    dsg_real *d = DSG_NAME(random_array)(2 * n, seed);
    for (size_t i = 0; i < 2 * n; i++) {
        double at = (double)(i < n ? i % w : (i - n) / w);
        double length = (double)(i < n ? w : h);
        switch ((size_t)(8 * (utest_random(seed) + 1))) {
        case 0:
            d[i] = (dsg_real)floor(3 * d[i]);
            break;
        case 1:
            d[i] = (dsg_real)(-1 - at);
            break;
        case 2:
            d[i] = (dsg_real)(length - at);
            break;
        case 3:
            d[i] = (dsg_real)(length - 1 - at);
            break;
        case 4:
            d[i] = (dsg_real)(d[i] < 0 ? -1e30 : 1e30);
            break;
        case 5:
            d[i] = (dsg_real)(-at + 0.25 * d[i]);
            break;
        default:
            d[i] *= 3;
        }
    }
    return d;
}

static void DSG_NAME(test_one_warp)(dsg_shape shape, uint64_t seed)
{
    size_t h = shape.h, w = shape.w, plane = h * w, n = shape.c * plane;
    size_t live = dsg_alloc_live();
    dsg_real *d = DSG_NAME(make_displacement)(h, w, &seed);
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_warp_create)(&op, shape, d) == DSG_OK);
    CHECK(op->in.c == shape.c && op->in.h == h && op->in.w == w);
    CHECK(op->out.c == shape.c && op->out.h == h && op->out.w == w);
    CHECK(op->class->linear && DSG_NAME(dsg_is_warp)(op));

    dsg_real *x = DSG_NAME(random_array)(n, &seed),
             *v = DSG_NAME(random_array)(n, &seed);
    dsg_real *y = DSG_NAME(nan_array)(n), *g = DSG_NAME(nan_array)(2 * plane);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    DSG_NAME(dsg_warp_displacement_gradient)(op, g, x, v);
    /* a weight and a product each way, and a sum */
    double tolerance = 8 * DSG_NAME(epsilon)(), worst = 0.0, worst_g = 0.0;
    for (size_t i = 0; i < plane; i++) {
        double row = (double)(i / w) + d[plane + i], column = (double)(i % w) + d[i];
        double across = 0.0, down = 0.0;
        for (size_t c = 0; c < shape.c; c++) {
            double want[3];
            DSG_NAME(ref_sample)(want, x + c * plane, h, w, row, column);
            double e = fabs(want[0] - y[c * plane + i]);
            worst = e <= worst ? worst : e;
            across += v[c * plane + i] * want[1];
            down += v[c * plane + i] * want[2];
        }
        double e = fabs(across - g[i]) + fabs(down - g[plane + i]);
        worst_g = e <= worst_g ? worst_g : e;
    }
    CHECK_NEAR(worst, 0.0, tolerance);
    CHECK_NEAR(worst_g, 0.0, 4 * tolerance * (double)shape.c);
    /* of the adjoint: up to 4 n such terms may meet in one pixel */
    DSG_NAME(check_operator)(op, tolerance * (double)plane, seed);

    dsg_free(ws);
    free(d);
    free(x);
    free(v);
    free(y);
    free(g);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_no_displacement_is_the_identity)(void)
{
    enum { H = 5, W = 9, C = 2 };
    dsg_shape shape = {.c = C, .h = H, .w = W};
    dsg_real d[2 * H * W] = {0}, y[C * H * W];
    uint64_t seed = 4;
    dsg_real *x = DSG_NAME(random_array)(C * H * W, &seed);
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_warp_create)(&op, shape, d) == DSG_OK);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    CHECK(memcmp(x, y, sizeof y) == 0);
    DSG_NAME(dsg_op_vjp)(op, y, NULL, x, ws);
    CHECK(memcmp(x, y, sizeof y) == 0);
    dsg_free(ws);
    free(x);
    DSG_NAME(dsg_op_destroy)(op);
}

/* d[0] = 1 looks one pixel to the right, d[1] = 1 one down. */
static void DSG_NAME(test_directions)(void)
{
    dsg_shape shape = {.c = 1, .h = 2, .w = 3};
    dsg_real x[6] = {1, 2, 3, 4, 5, 6}, y[6];
    for (size_t axis = 0; axis < 2; axis++) {
        static const dsg_real want[2][6] = {{2, 3, 0, 5, 6, 0}, {4, 5, 6, 0, 0, 0}};
        dsg_real d[12] = {0};
        for (size_t i = 0; i < 6; i++)
            d[6 * axis + i] = 1;
        DSG_NAME(dsg_op) *op = NULL;
        CHECK(DSG_NAME(dsg_warp_create)(&op, shape, d) == DSG_OK);
        void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
        DSG_NAME(dsg_op_forward)(op, y, x, ws);
        CHECK(memcmp(y, want[axis], sizeof y) == 0);
        dsg_free(ws);
        DSG_NAME(dsg_op_destroy)(op);
    }
}

static void DSG_NAME(test_warp_errors)(void)
{
    dsg_shape shape = {.c = 2, .h = 3, .w = 2}, s;
    dsg_real d[12] = {0};
    DSG_NAME(dsg_op) *op = NULL;
    s = shape, s.c = 0;
    CHECK(DSG_NAME(dsg_warp_create)(&op, s, d) == DSG_ESHAPE);
    s = shape, s.h = 0;
    CHECK(DSG_NAME(dsg_warp_create)(&op, s, d) == DSG_ESHAPE);
    s = shape, s.w = 0;
    CHECK(DSG_NAME(dsg_warp_create)(&op, s, d) == DSG_ESHAPE);
    s = shape, s.h = SIZE_MAX;
    CHECK(DSG_NAME(dsg_warp_create)(&op, s, d) == DSG_ESHAPE);
    s = (dsg_shape){.c = 1, .h = 1, .w = PTRDIFF_MAX / sizeof(dsg_real) - 100};
    CHECK(DSG_NAME(dsg_warp_create)(&op, s, d) == DSG_ESHAPE);
    d[11] = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_warp_create)(&op, shape, d) == DSG_ENONFINITE);
    d[11] = (dsg_real)-INFINITY;
    CHECK(DSG_NAME(dsg_warp_create)(&op, shape, d) == DSG_ENONFINITE);
    CHECK(op == NULL);
    d[11] = 0;
    size_t live = dsg_alloc_live();
    CHECK_ALLOCATION_FAILURES(DSG_NAME(dsg_warp_create)(&op, shape, d));
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

static void DSG_NAME(test_warp_all)(void)
{
    static const dsg_shape shapes[] = {{1, 1, 1},  {2, 1, 2},   {3, 2, 1},  {7, 3, 5},
                                       {3, 8, 16}, {2, 17, 13}, {1, 33, 31}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t k = 0; k < 4; k++)
            DSG_NAME(test_one_warp)(shapes[i], 10 * i + k);
    DSG_NAME(test_no_displacement_is_the_identity)();
    DSG_NAME(test_directions)();
    DSG_NAME(test_warp_errors)();
}
