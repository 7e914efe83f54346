/* outer after inner, bit for bit; and, with error as for check_operator, everything an
 * operator must satisfy.  bound: for finite differences, where the outer derivative
 * takes the rounding of inner(x) with it. */
static void DSG_NAME(test_one_composition)(const DSG_NAME(dsg_op) *outer,
                                           const DSG_NAME(dsg_op) *inner, double error,
                                           double bound, uint64_t seed)
{
    size_t n = dsg_shape_size(inner->in), k = dsg_shape_size(inner->out);
    size_t m = dsg_shape_size(outer->out), live = dsg_alloc_live();
    DSG_NAME(dsg_op) *op = NULL;
    CHECK(DSG_NAME(dsg_compose_create)(&op, outer, inner) == DSG_OK);
    CHECK(dsg_shape_size(op->in) == n && dsg_shape_size(op->out) == m);
    CHECK(op->in.h == inner->in.h && op->out.h == outer->out.h);
    CHECK(op->class->linear == (outer->class->linear && inner->class->linear));

    dsg_real *x = DSG_NAME(random_array)(n, &seed), *z = DSG_NAME(nan_array)(k);
    dsg_real *want = DSG_NAME(nan_array)(m), *y = DSG_NAME(nan_array)(m);
    dsg_real *v = DSG_NAME(random_array)(m, &seed), *back = DSG_NAME(nan_array)(k);
    dsg_real *g = DSG_NAME(nan_array)(n), *want_g = DSG_NAME(nan_array)(n);
    void *ws = dsg_alloc(DSG_NAME(dsg_op_workspace)(op), 1);
    void *ws_outer = dsg_alloc(DSG_NAME(dsg_op_workspace)(outer), 1);
    void *ws_inner = dsg_alloc(DSG_NAME(dsg_op_workspace)(inner), 1);
    DSG_NAME(dsg_op_forward)(op, y, x, ws);
    DSG_NAME(dsg_op_forward)(inner, z, x, ws_inner);
    DSG_NAME(dsg_op_forward)(outer, want, z, ws_outer);
    CHECK(memcmp(y, want, m * sizeof *y) == 0);
    DSG_NAME(dsg_op_vjp)(op, g, x, v, ws);
    DSG_NAME(dsg_op_vjp)(outer, back, z, v, ws_outer);
    DSG_NAME(dsg_op_vjp)(inner, want_g, x, back, ws_inner);
    CHECK(memcmp(g, want_g, n * sizeof *g) == 0);

    DSG_NAME(check_adjoint)(op, error, seed);
    DSG_NAME(check_batch)(op, seed + 1);
    if (!op->class->linear)
        DSG_NAME(check_derivatives)(op, x, bound, seed + 2);

    dsg_free(ws);
    dsg_free(ws_outer);
    dsg_free(ws_inner);
    free(x);
    free(z);
    free(want);
    free(y);
    free(v);
    free(back);
    free(g);
    free(want_g);
    DSG_NAME(dsg_op_destroy)(op);
    CHECK(dsg_alloc_live() == live);
}

/* Linear and not, sizes that change, fused gradients and none, on either side. */
static void DSG_NAME(test_compositions)(void)
{
    enum { H = 7, W = 6, PLANE = H * W, IN = 2 * PLANE, OUT = 5 };
    dsg_shape shape = {.c = 2, .h = H, .w = W}, flat = {.c = 1, .h = 1, .w = OUT};
    uint64_t seed = 12;
    dsg_real *d = DSG_NAME(random_array)(2 * PLANE, &seed);
    double *entries = malloc(OUT * IN * sizeof *entries);
    unsigned char mask[PLANE];
    for (size_t i = 0; i < OUT * IN; i++)
        entries[i] = utest_random(&seed);
    for (size_t i = 0; i < PLANE; i++)
        mask[i] = utest_random(&seed) > 0;

    enum { WARP, MATRIX, MASK, PHASE, CLIP, DECODE, COUNT };
    DSG_NAME(dsg_op) *op[COUNT] = {NULL};
    CHECK(DSG_NAME(dsg_warp_create)(&op[WARP], shape, d) == DSG_OK);
    CHECK(DSG_NAME(dsg_matrix_create)(&op[MATRIX], shape, flat, entries) == DSG_OK);
    CHECK(DSG_NAME(dsg_mask_create)(&op[MASK], shape, mask, 1) == DSG_OK);
    CHECK(DSG_NAME(dsg_phase_create)(&op[PHASE], shape, 3, 1, 0) == DSG_OK);
    CHECK(DSG_NAME(dsg_pointwise_create)(&op[CLIP], shape, DSG_POINTWISE_CLIP, 1.5) ==
          DSG_OK);
    CHECK(DSG_NAME(dsg_pointwise_create)(&op[DECODE], shape, DSG_POINTWISE_DECODE,
                                         2.2) == DSG_OK);
    static const int pairs[][2] = {{MASK, WARP},     {MATRIX, WARP},  {PHASE, WARP},
                                   {CLIP, WARP},     {PHASE, DECODE}, {DECODE, CLIP},
                                   {MATRIX, DECODE}, {WARP, CLIP}};
    /* sums of IN terms below 2.2; the phase's magnitudes are above 1 / 100 here */
    double error = 16 * DSG_NAME(epsilon)() * IN;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        DSG_NAME(test_one_composition)
        (op[pairs[i][0]], op[pairs[i][1]], error, 100 * error, 20 + i);
    }

    /* three in a row, the workspace of one inside that of the other */
    DSG_NAME(dsg_op) *two = NULL;
    CHECK(DSG_NAME(dsg_compose_create)(&two, op[DECODE], op[WARP]) == DSG_OK);
    DSG_NAME(test_one_composition)(op[PHASE], two, error, 100 * error, 40);
    DSG_NAME(dsg_op_destroy)(two);
    CHECK(DSG_NAME(dsg_compose_create)(&two, op[PHASE], op[DECODE]) == DSG_OK);
    DSG_NAME(test_one_composition)(two, op[MASK], error, 100 * error, 41);

    /* shapes must fit in every number */
    DSG_NAME(dsg_op) *none = NULL;
    size_t live = dsg_alloc_live();
    CHECK(DSG_NAME(dsg_compose_create)(&none, op[WARP], op[PHASE]) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_compose_create)(&none, op[WARP], op[MATRIX]) == DSG_ESHAPE);
    dsg_shape wrong[3] = {{1, H, W}, {2, H + 1, W}, {2, H, W - 1}};
    for (size_t i = 0; i < 3; i++) {
        DSG_NAME(dsg_op) *other = NULL;
        CHECK(DSG_NAME(dsg_pointwise_create)(&other, wrong[i], DSG_POINTWISE_CLIP, 2) ==
              DSG_OK);
        CHECK(DSG_NAME(dsg_compose_create)(&none, op[WARP], other) == DSG_ESHAPE);
        DSG_NAME(dsg_op_destroy)(other);
    }
    CHECK(none == NULL);
    CHECK_ALLOCATION_FAILURES(
        DSG_NAME(dsg_compose_create)(&none, op[MATRIX], op[WARP]));
    DSG_NAME(dsg_op_destroy)(none);
    CHECK(dsg_alloc_live() == live);

    DSG_NAME(dsg_op_destroy)(two);
    for (size_t i = 0; i < COUNT; i++)
        DSG_NAME(dsg_op_destroy)(op[i]);
    free(entries);
    free(d);
}

/* A chain as long as is allowed works, one more is refused. */
static void DSG_NAME(test_compose_depth)(void)
{
    enum { DEPTH = 10000 };
    static DSG_NAME(dsg_op) *chain[DEPTH + 1];
    dsg_shape shape = {1, 1, 1};
    CHECK(DSG_NAME(dsg_pointwise_create)(&chain[0], shape, DSG_POINTWISE_CLIP, 1) ==
          DSG_OK);
    for (size_t i = 0; i < DEPTH; i++)
        CHECK(DSG_NAME(dsg_compose_create)(&chain[i + 1], chain[0], chain[i]) ==
              DSG_OK);
    dsg_real x = (dsg_real)0.5, y = (dsg_real)NAN;
    CHECK(DSG_NAME(dsg_op_forward_batch)(chain[DEPTH], &y, &x, 1) == DSG_OK);
    CHECK(y == x);
    DSG_NAME(dsg_op) *deeper = NULL;
    CHECK(DSG_NAME(dsg_compose_create)(&deeper, chain[0], chain[DEPTH]) == DSG_ESHAPE);
    CHECK(DSG_NAME(dsg_compose_create)(&deeper, chain[DEPTH], chain[0]) == DSG_ESHAPE);
    CHECK(deeper == NULL);
    for (size_t i = 0; i <= DEPTH; i++)
        DSG_NAME(dsg_op_destroy)(chain[i]);
}

static void DSG_NAME(test_compose_all)(void)
{
    DSG_NAME(test_compositions)();
    DSG_NAME(test_compose_depth)();
}
