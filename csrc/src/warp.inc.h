/* The warp for one precision.
 *
 * A channel is worked on inside a frame of zeros, one row above, one column on either
 * side and two rows below: a place that lies partly outside needs no test, and one
 * that lies wholly outside looks at the last two rows. */

typedef struct DSG_NAME(warp) {
    DSG_NAME(dsg_op) op;
    size_t rows, ld;        /* of the framed image: h + 3, w + 2 */
    size_t *corner;         /* (h, w): upper left of the four taps, in the frame */
    dsg_real *down, *right; /* (h, w): how far the place is from it, in [0, 1] */
} DSG_NAME(warp);

/* DSG_CLONES gain nothing here: four loads a place, from anywhere, is what it costs. */
static void DSG_NAME(warp_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                   const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(warp) *k = (const DSG_NAME(warp) *)op;
    size_t h = op->in.h, w = op->in.w, ld = k->ld;
    dsg_real *frame = ws;
    memset(frame, 0, k->rows * ld * sizeof *frame);
    for (size_t c = 0; c < op->in.c; c++, x += h * w, y += h * w) {
        for (size_t i = 0; i < h; i++)
            memcpy(frame + (i + 1) * ld + 1, x + i * w, w * sizeof *x);
        for (size_t i = 0; i < h * w; i++) {
            const dsg_real *p = frame + k->corner[i];
            dsg_real d = k->down[i], r = k->right[i];
            dsg_real upper = (1 - r) * p[0] + r * p[1];
            dsg_real lower = (1 - r) * p[ld] + r * p[ld + 1];
            y[i] = (1 - d) * upper + d * lower;
        }
    }
}

/* Scatters in the order of the places: the same sums every time. */
static void DSG_NAME(warp_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                               const dsg_real *restrict x, const dsg_real *restrict v,
                               void *ws)
{
    const DSG_NAME(warp) *k = (const DSG_NAME(warp) *)op;
    size_t h = op->in.h, w = op->in.w, ld = k->ld;
    dsg_real *frame = ws;
    (void)x;
    for (size_t c = 0; c < op->in.c; c++, v += h * w, g += h * w) {
        memset(frame, 0, k->rows * ld * sizeof *frame);
        for (size_t i = 0; i < h * w; i++) {
            dsg_real *p = frame + k->corner[i];
            dsg_real d = k->down[i], r = k->right[i];
            dsg_real upper = (1 - d) * v[i], lower = d * v[i];
            p[0] += (1 - r) * upper;
            p[1] += r * upper;
            p[ld] += (1 - r) * lower;
            p[ld + 1] += r * lower;
        }
        for (size_t i = 0; i < h; i++)
            memcpy(g + i * w, frame + (i + 1) * ld + 1, w * sizeof *g);
    }
}

void DSG_NAME(dsg_warp_displacement_gradient)(const DSG_NAME(dsg_op) *op,
                                              dsg_real *restrict g,
                                              const dsg_real *restrict x,
                                              const dsg_real *restrict v)
{
    const DSG_NAME(warp) *k = (const DSG_NAME(warp) *)op;
    size_t h = op->in.h, w = op->in.w, n = h * w;
    for (size_t i = 0; i < n; i++) {
        /* row and column of the corner, one more than in the image */
        size_t row = k->corner[i] / k->ld, column = k->corner[i] % k->ld;
        bool above = row >= 1 && row <= h, below = row < h;
        bool left = column >= 1, right = column < w;
        dsg_real d = k->down[i], r = k->right[i], down = 0, across = 0;
        if (above || below)
            for (size_t c = 0; c < op->in.c; c++) {
                const dsg_real *plane = x + c * n;
                const dsg_real *upper = above ? plane + (row - 1) * w : NULL;
                const dsg_real *lower = below ? plane + row * w : NULL;
                dsg_real p00 = upper && left ? upper[column - 1] : 0;
                dsg_real p01 = upper && right ? upper[column] : 0;
                dsg_real p10 = lower && left ? lower[column - 1] : 0;
                dsg_real p11 = lower && right ? lower[column] : 0;
                dsg_real t = v[c * n + i];
                across += t * ((1 - d) * (p01 - p00) + d * (p11 - p10));
                down += t * ((1 - r) * (p10 - p00) + r * (p11 - p01));
            }
        g[i] = across;
        g[n + i] = down;
    }
}

static void DSG_NAME(warp_destroy)(DSG_NAME(dsg_op) *op)
{
    DSG_NAME(warp) *k = (DSG_NAME(warp) *)op;
    dsg_free(k->corner);
    dsg_free(k->down);
    dsg_free(k->right);
    dsg_free(k);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(warp_class) = {
    .linear = true,
    .forward = DSG_NAME(warp_forward),
    .vjp = DSG_NAME(warp_vjp),
    .destroy = DSG_NAME(warp_destroy),
};

bool DSG_NAME(dsg_is_warp)(const DSG_NAME(dsg_op) *op)
{
    return op->class == &DSG_NAME(warp_class);
}

/* Places are computed and compared in double, before they become integers: no
 * displacement is too large. */
static void DSG_NAME(place_taps)(DSG_NAME(warp) *k, const dsg_real *displacement)
{
    size_t h = k->op.in.h, w = k->op.in.w;
    for (size_t i = 0; i < h; i++)
        for (size_t j = 0; j < w; j++) {
            size_t at = i * w + j;
            double row = (double)i + displacement[h * w + at];
            double column = (double)j + displacement[at];
            /* from -1 on, part of a place is inside, or its derivative is */
            bool inside =
                row >= -1.0 && row < (double)h && column >= -1.0 && column < (double)w;
            if (!inside) {
                k->corner[at] = (h + 1) * k->ld;
                k->down[at] = k->right[at] = 0;
                continue;
            }
            double top = floor(row), left = floor(column);
            k->corner[at] = (size_t)(top + 1.0) * k->ld + (size_t)(left + 1.0);
            k->down[at] = (dsg_real)(row - top);
            k->right[at] = (dsg_real)(column - left);
        }
}

dsg_status DSG_NAME(dsg_warp_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const dsg_real *displacement)
{
    dsg_shape frame = {.c = 1, .h = shape.h + 3, .w = shape.w + 2};
    if (!dsg_shape_valid(shape, sizeof(dsg_real)) ||
        !dsg_shape_valid(frame, sizeof(dsg_real)))
        return DSG_ESHAPE;
    size_t n = shape.h * shape.w;
    if (n > PTRDIFF_MAX / (2 * sizeof(dsg_real)))
        return DSG_ESHAPE; /* no displacement of that size can exist */
    for (size_t i = 0; i < 2 * n; i++)
        if (!isfinite(displacement[i]))
            return DSG_ENONFINITE;

    DSG_NAME(warp) *k = dsg_calloc(1, sizeof *k);
    if (!k)
        return DSG_ENOMEM;
    k->op.class = &DSG_NAME(warp_class);
    k->op.in = k->op.out = shape;
    k->rows = frame.h;
    k->ld = frame.w;
    k->op.workspace = frame.h * frame.w * sizeof(dsg_real);
    k->corner = dsg_alloc(n, sizeof *k->corner);
    k->down = dsg_alloc(n, sizeof *k->down);
    k->right = dsg_alloc(n, sizeof *k->right);
    if (!k->corner || !k->down || !k->right) {
        DSG_NAME(warp_destroy)(&k->op);
        return DSG_ENOMEM;
    }
    DSG_NAME(place_taps)(k, displacement);
    *op = &k->op;
    return DSG_OK;
}
