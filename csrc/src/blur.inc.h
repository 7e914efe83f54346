/* The blur for one precision. */

/* How far from rank one a kernel may be and still count as separable.  In float, a few
 * roundings of the result; in double, the roundings of a rank-one kernel that was kept
 * in float32, four entries of which meet in k - column row / largest: 4 * 2^-24. */
#if DSG_PRECISION == 32
#define RANK_ONE_TOLERANCE 1e-6
#else
#define RANK_ONE_TOLERANCE 2.5e-7
#endif

/* A weighted sum of shifted copies: out[0] = sum_t weight[t] in[offset[t]]. */
typedef struct DSG_NAME(taps) {
    size_t n;
    size_t *offset;
    dsg_real *weight;
} DSG_NAME(taps);

typedef struct DSG_NAME(blur) {
    DSG_NAME(dsg_op) op;
    dsg_blur_form form;
    dsg_border border;
    support k;
    extension rows, columns; /* rows->n + both pads = out.h + k.h - 1, and so across */
    size_t ld, buffer; /* row stride and size of each of the two buffers, in elements */

    /* separable: down the columns, then across the rows; sparse: only down, holding
     * all taps */
    DSG_NAME(taps) down, down_adjoint, across, across_adjoint;

    /* fft */
    const DSG_NAME(dsg_fft) *plan;
    size_t fft_h, fft_w;
    dsg_real *transfer; /* transform of the kernel over fft_h * fft_w */
} DSG_NAME(blur);

/* ---- direct correlation ---- */

/* One tile of outputs, taps > 0.  Starting from the first tap, not from zero, is what
 * makes gcc 12 keep the sums in registers (140 against 45 GFLOP/s in float). */
DSG_CLONES static void DSG_NAME(correlate_tile)(
    dsg_real *restrict out, size_t ld_out, const dsg_real *restrict in, size_t ld_in,
    const size_t *restrict offset, const dsg_real *restrict weight, size_t taps)
{
    dsg_real sum[ROWS][LANES];
    const dsg_real *first = in + offset[0];
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < LANES; j++)
            sum[i][j] = weight[0] * first[i * ld_in + j];
    for (size_t t = 1; t < taps; t++) {
        const dsg_real *shifted = in + offset[t];
        dsg_real k = weight[t];
        for (size_t i = 0; i < ROWS; i++)
            for (size_t j = 0; j < LANES; j++)
                sum[i][j] += k * shifted[i * ld_in + j];
    }
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < LANES; j++)
            out[i * ld_out + j] = sum[i][j];
}

/* out (h, w): every entry is the weighted sum of the shifted entries of `in` at the
 * same place.  `in` is read in whole tiles: h and w rounded up, plus the offsets. */
static void DSG_NAME(correlate)(dsg_real *restrict out, size_t ld_out, size_t h,
                                size_t w, const dsg_real *restrict in, size_t ld_in,
                                const DSG_NAME(taps) *taps)
{
    dsg_real edge[ROWS * LANES];
    /* down each strip first: the rows a tile shares with the next stay in L1 */
    for (size_t j = 0; j < w; j += LANES)
        for (size_t i = 0; i < h; i += ROWS) {
            size_t rows = h - i < ROWS ? h - i : ROWS;
            size_t columns = w - j < LANES ? w - j : LANES;
            bool whole = rows == ROWS && columns == LANES;
            dsg_real *tile = out + i * ld_out + j;
            DSG_NAME(correlate_tile)
            (whole ? tile : edge, whole ? ld_out : LANES, in + i * ld_in + j, ld_in,
             taps->offset, taps->weight, taps->n);
            if (!whole)
                DSG_NAME(copy_plane)(tile, ld_out, edge, LANES, rows, columns);
        }
}

/* ---- separable ---- */

static void DSG_NAME(separable_forward)(const DSG_NAME(dsg_op) *op,
                                        dsg_real *restrict y,
                                        const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    const extension *rows = &b->rows, *columns = &b->columns;
    dsg_shape in = op->in, out = op->out;
    size_t ld = b->ld;
    dsg_real *p = ws, *q = p + b->buffer;
    for (size_t c = 0; c < in.c; c++, x += in.h * in.w, y += out.h * out.w) {
        DSG_NAME(copy_plane)(p + rows->before * ld, ld, x, in.w, in.h, in.w);
        DSG_NAME(pad_rows)(p, ld, rows, in.w);
        DSG_NAME(correlate)(q + columns->before, ld, out.h, in.w, p, ld, &b->down);
        DSG_NAME(pad_columns)(q, ld, out.h, columns);
        DSG_NAME(correlate)(y, out.w, out.h, out.w, q, ld, &b->across);
    }
}

static void DSG_NAME(separable_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                    const dsg_real *restrict x,
                                    const dsg_real *restrict v, void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    const extension *rows = &b->rows, *columns = &b->columns;
    dsg_shape in = op->in, out = op->out;
    size_t ld = b->ld, height = b->k.h - 1, width = b->k.w - 1;
    dsg_real *p = ws, *q = p + b->buffer;
    (void)x;
    for (size_t c = 0; c < in.c; c++, v += out.h * out.w, g += in.h * in.w) {
        DSG_NAME(zero_plane)(p, ld, height, out.w);
        DSG_NAME(copy_plane)(p + height * ld, ld, v, out.w, out.h, out.w);
        DSG_NAME(zero_plane)(p + (height + out.h) * ld, ld, height, out.w);
        DSG_NAME(correlate)
        (q + width, ld, extended(rows), out.w, p, ld, &b->down_adjoint);
        DSG_NAME(fold_rows)(q + width, ld, rows, out.w);

        dsg_real *middle = q + rows->before * ld;
        DSG_NAME(zero_plane)(middle, ld, in.h, width);
        DSG_NAME(zero_plane)(middle + width + out.w, ld, in.h, width);
        DSG_NAME(correlate)
        (p, ld, in.h, extended(columns), middle, ld, &b->across_adjoint);
        DSG_NAME(fold_columns)(p, ld, in.h, columns);
        DSG_NAME(copy_plane)(g, in.w, p + columns->before, ld, in.h, in.w);
    }
}

/* ---- sparse ---- */

static void DSG_NAME(sparse_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                     const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    dsg_shape in = op->in, out = op->out;
    dsg_real *p = ws;
    for (size_t c = 0; c < in.c; c++, x += in.h * in.w, y += out.h * out.w) {
        DSG_NAME(pad_image)(p, b->ld, x, &b->rows, &b->columns);
        DSG_NAME(correlate)(y, out.w, out.h, out.w, p, b->ld, &b->down);
    }
}

static void DSG_NAME(sparse_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                 const dsg_real *restrict x, const dsg_real *restrict v,
                                 void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    dsg_shape in = op->in, out = op->out;
    size_t ld = b->ld, height = b->k.h - 1, width = b->k.w - 1;
    dsg_real *p = ws, *q = p + b->buffer;
    (void)x;
    DSG_NAME(zero_plane)(p, ld, out.h + 2 * height, out.w + 2 * width);
    for (size_t c = 0; c < in.c; c++, v += out.h * out.w, g += in.h * in.w) {
        DSG_NAME(copy_plane)(p + height * ld + width, ld, v, out.w, out.h, out.w);
        DSG_NAME(correlate)
        (q, ld, extended(&b->rows), extended(&b->columns), p, ld, &b->down_adjoint);
        DSG_NAME(fold_image)(g, q, ld, &b->rows, &b->columns);
    }
}

/* ---- fft ---- */

/* a <- a t, or a conj(t) for the correlation; n complex numbers. */
DSG_CLONES static void DSG_NAME(multiply)(dsg_real *restrict a,
                                          const dsg_real *restrict t, size_t n,
                                          dsg_real sign)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real re = a[2 * i], im = a[2 * i + 1];
        dsg_real tr = t[2 * i], ti = sign * t[2 * i + 1];
        a[2 * i] = re * tr - im * ti;
        a[2 * i + 1] = re * ti + im * tr;
    }
}

/* Zeroes what an image (h, w) in its corner leaves of a grid. */
static void DSG_NAME(zero_rest)(dsg_real *grid, size_t fft_h, size_t fft_w, size_t h,
                                size_t w)
{
    DSG_NAME(zero_plane)(grid + w, fft_w, h, fft_w - w);
    DSG_NAME(zero_plane)(grid + h * fft_w, fft_w, fft_h - h, fft_w);
}

static void DSG_NAME(convolve_grid)(const DSG_NAME(blur) *b, dsg_real *grid,
                                    dsg_real sign)
{
    dsg_real *spectrum = grid + b->buffer;
    DSG_NAME(dsg_fft_forward)(b->plan, spectrum, grid);
    DSG_NAME(multiply)(spectrum, b->transfer, b->fft_h * (b->fft_w / 2 + 1), sign);
    DSG_NAME(dsg_fft_inverse)(b->plan, grid, spectrum);
}

static void DSG_NAME(fft_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                  const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    dsg_shape in = op->in, out = op->out;
    size_t height = extended(&b->rows), width = extended(&b->columns);
    dsg_real *p = ws;
    for (size_t c = 0; c < in.c; c++, x += in.h * in.w, y += out.h * out.w) {
        DSG_NAME(pad_image)(p, b->fft_w, x, &b->rows, &b->columns);
        DSG_NAME(zero_rest)(p, b->fft_h, b->fft_w, height, width);
        /* outputs i < out.h meet inputs i + a < height <= fft_h: nothing wraps around
         */
        DSG_NAME(convolve_grid)(b, p, -1);
        DSG_NAME(copy_plane)(y, out.w, p, b->fft_w, out.h, out.w);
    }
}

static void DSG_NAME(fft_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                              const dsg_real *restrict x, const dsg_real *restrict v,
                              void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    dsg_shape in = op->in, out = op->out;
    dsg_real *p = ws;
    (void)x;
    for (size_t c = 0; c < in.c; c++, v += out.h * out.w, g += in.h * in.w) {
        DSG_NAME(copy_plane)(p, b->fft_w, v, out.w, out.h, out.w);
        DSG_NAME(zero_rest)(p, b->fft_h, b->fft_w, out.h, out.w);
        DSG_NAME(convolve_grid)(b, p, 1);
        DSG_NAME(fold_image)(g, p, b->fft_w, &b->rows, &b->columns);
    }
}

/* ---- data step ---- */

/* The matrix (h, e->n) of a correlation along one axis of which tap t lies
 * offset[t] / stride places behind the first. */
static double *DSG_NAME(axis_matrix)(const DSG_NAME(taps) *taps, size_t stride,
                                     const extension *e, size_t h, dsg_border border)
{
    double *m = dsg_calloc(h * e->n, sizeof *m);
    for (size_t i = 0; m && i < h; i++)
        for (size_t t = 0; t < taps->n; t++) {
            size_t place = i + taps->offset[t] / stride;
            size_t j =
                border_index((ptrdiff_t)place - (ptrdiff_t)e->before, e->n, border);
            if (j != DSG_OUTSIDE)
                m[i * e->n + j] += taps->weight[t];
        }
    return m;
}

static dsg_status DSG_NAME(separable_step)(DSG_NAME(dsg_data_step) **step,
                                           const DSG_NAME(blur) *b)
{
    dsg_status err = DSG_ENOMEM;
    double *t = NULL;
    double *r =
        DSG_NAME(axis_matrix)(&b->down, b->ld, &b->rows, b->op.out.h, b->border);
    if (!r)
        goto done;
    t = DSG_NAME(axis_matrix)(&b->across, 1, &b->columns, b->op.out.w, b->border);
    if (!t)
        goto done;
    err = DSG_NAME(dsg_separable_create)(step, &b->op, b->op.in.c, b->op.out.h,
                                         b->op.in.h, b->op.out.w, b->op.in.w, r, t);
done:
    dsg_free(t);
    dsg_free(r);
    return err;
}

/* *step = NULL where there is no closed form. */
static dsg_status DSG_NAME(blur_data_step)(const DSG_NAME(dsg_op) *op,
                                           DSG_NAME(dsg_data_step) **step)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    dsg_shape in = op->in, out = op->out;
    *step = NULL;
    if (b->border == DSG_BORDER_CIRCULAR && out.h == in.h && out.w == in.w)
        return DSG_NAME(dsg_circular_create)(step, op);
    /* y is no smaller than x; said here too so as not to make the matrices */
    bool small = in.h <= DSG_SEPARABLE_MOST && in.w <= DSG_SEPARABLE_MOST;
    if (b->form == DSG_BLUR_SEPARABLE && small)
        return DSG_NAME(separable_step)(step, b);
    return DSG_OK;
}

/* ---- set-up ---- */

static void DSG_NAME(free_taps)(DSG_NAME(taps) *taps)
{
    dsg_free(taps->offset);
    dsg_free(taps->weight);
}

static void DSG_NAME(blur_destroy)(DSG_NAME(dsg_op) *op)
{
    DSG_NAME(blur) *b = (DSG_NAME(blur) *)op;
    DSG_NAME(free_taps)(&b->down);
    DSG_NAME(free_taps)(&b->down_adjoint);
    DSG_NAME(free_taps)(&b->across);
    DSG_NAME(free_taps)(&b->across_adjoint);
    dsg_free(b->transfer);
    dsg_free(b->rows.source);
    dsg_free(b->columns.source);
    dsg_free(b);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(separable_class) = {
    .linear = true,
    .forward = DSG_NAME(separable_forward),
    .vjp = DSG_NAME(separable_vjp),
    .data_step = DSG_NAME(blur_data_step),
    .destroy = DSG_NAME(blur_destroy),
};

static const DSG_NAME(dsg_op_class) DSG_NAME(sparse_class) = {
    .linear = true,
    .forward = DSG_NAME(sparse_forward),
    .vjp = DSG_NAME(sparse_vjp),
    .data_step = DSG_NAME(blur_data_step),
    .destroy = DSG_NAME(blur_destroy),
};

static const DSG_NAME(dsg_op_class) DSG_NAME(fft_class) = {
    .linear = true,
    .forward = DSG_NAME(fft_forward),
    .vjp = DSG_NAME(fft_vjp),
    .data_step = DSG_NAME(blur_data_step),
    .destroy = DSG_NAME(blur_destroy),
};

/* The taps that are not zero of a (h, w) piece of the kernel with row stride kw,
 * divided by `divisor`, for images with row stride ld; and the same turned around for
 * the adjoint. */
static dsg_status DSG_NAME(make_taps)(DSG_NAME(taps) *taps, DSG_NAME(taps) *adjoint,
                                      const double *kernel, size_t h, size_t w,
                                      size_t kw, double divisor, size_t ld)
{
    size_t n = 0;
    for (size_t a = 0; a < h; a++)
        n += count_taps(kernel + a * kw, w);
    size_t room = n ? n : 1; /* a kernel of zeros keeps one tap of weight 0 */
    DSG_NAME(taps) *both[2] = {taps, adjoint};
    for (size_t i = 0; i < 2; i++) {
        both[i]->n = room;
        both[i]->offset = dsg_calloc(room, sizeof *taps->offset);
        both[i]->weight = dsg_calloc(room, sizeof *taps->weight);
        if (!both[i]->offset || !both[i]->weight)
            return DSG_ENOMEM;
    }
    size_t t = 0;
    for (size_t a = 0; a < h; a++)
        for (size_t b = 0; b < w; b++) {
            double k = kernel[a * kw + b];
            if (k == 0.0)
                continue;
            taps->offset[t] = a * ld + b;
            adjoint->offset[t] = (h - 1 - a) * ld + (w - 1 - b);
            taps->weight[t] = adjoint->weight[t] = (dsg_real)(k / divisor);
            t++;
        }
    return DSG_OK;
}

/* Row stride, buffer size and workspace of the direct forms. */
static dsg_status DSG_NAME(size_buffers)(DSG_NAME(blur) *b)
{
    size_t h = extended(&b->rows), w = extended(&b->columns), bytes;
    size_t height = b->k.h - 1, width = b->k.w - 1;
    /* whole tiles of the padded image plus the reach of the taps */
    size_t rows = round_up(h, ROWS) + height;
    b->ld = row_stride(round_up(w, LANES) + width);
    if (!dsg_mul(rows, b->ld, &b->buffer) ||
        !dsg_mul(b->buffer, 2 * sizeof(dsg_real), &bytes) || bytes > PTRDIFF_MAX / 2)
        return DSG_ESHAPE;
    b->op.workspace = bytes;
    return DSG_OK;
}

static dsg_status DSG_NAME(make_separable)(DSG_NAME(blur) *b, const double *kernel,
                                           size_t kw, size_t row, size_t column)
{
    const support *k = &b->k;
    double largest = kernel[row * kw + column];
    double divisor = largest != 0.0 ? largest : 1.0;
    b->op.class = &DSG_NAME(separable_class);
    dsg_status err = DSG_NAME(size_buffers)(b);
    if (err == DSG_OK)
        err = DSG_NAME(make_taps)(&b->down, &b->down_adjoint,
                                  kernel + k->first_row * kw + column, k->h, 1, kw, 1.0,
                                  b->ld);
    if (err == DSG_OK)
        err = DSG_NAME(make_taps)(&b->across, &b->across_adjoint,
                                  kernel + row * kw + k->first_column, 1, k->w, kw,
                                  divisor, b->ld);
    return err;
}

static dsg_status DSG_NAME(make_sparse)(DSG_NAME(blur) *b, const double *kernel,
                                        size_t kw)
{
    const support *k = &b->k;
    b->op.class = &DSG_NAME(sparse_class);
    dsg_status err = DSG_NAME(size_buffers)(b);
    if (err != DSG_OK)
        return err;
    return DSG_NAME(make_taps)(&b->down, &b->down_adjoint,
                               kernel + k->first_row * kw + k->first_column, k->h, k->w,
                               kw, 1.0, b->ld);
}

/* The size of a grid and of its spectrum, in elements, a whole number of times the
 * alignment. */
static dsg_status DSG_NAME(size_grid)(size_t *grid, size_t *spectrum, size_t fft_h,
                                      size_t fft_w)
{
    if (!dsg_mul(fft_h, fft_w, grid) ||
        !dsg_mul(fft_h, 2 * (fft_w / 2 + 1), spectrum) ||
        *spectrum > PTRDIFF_MAX / (8 * sizeof(dsg_real)))
        return DSG_ESHAPE;
    *grid = round_up(*grid, DSG_ALIGN / sizeof(dsg_real));
    *spectrum = round_up(*spectrum, DSG_ALIGN / sizeof(dsg_real));
    return DSG_OK;
}

static dsg_status DSG_NAME(make_fft)(DSG_NAME(blur) *b, const double *kernel, size_t kw)
{
    const support *k = &b->k;
    size_t spectrum;
    b->op.class = &DSG_NAME(fft_class);
    b->fft_h = grid_side(extended(&b->rows));
    b->fft_w = grid_side(extended(&b->columns));
    dsg_status err = DSG_NAME(size_grid)(&b->buffer, &spectrum, b->fft_h, b->fft_w);
    if (err != DSG_OK)
        return err;
    b->op.workspace = (b->buffer + spectrum) * sizeof(dsg_real);

    err = DSG_NAME(dsg_fft_get)(&b->plan, b->fft_h, b->fft_w);
    if (err != DSG_OK)
        return err;
    b->transfer = dsg_alloc(spectrum, sizeof *b->transfer);
    dsg_real *x = dsg_calloc(b->buffer, sizeof *x);
    if (!b->transfer || !x) {
        dsg_free(x);
        return DSG_ENOMEM;
    }
    for (size_t a = 0; a < k->h; a++)
        for (size_t c = 0; c < k->w; c++) {
            double value = kernel[(k->first_row + a) * kw + k->first_column + c];
            x[a * b->fft_w + c] =
                (dsg_real)(value / ((double)b->fft_h * (double)b->fft_w));
        }
    DSG_NAME(dsg_fft_forward)(b->plan, b->transfer, x);
    dsg_free(x);
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_blur_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const double *kernel,
                                     const dsg_blur_geometry *geometry,
                                     dsg_blur_form form)
{
    const dsg_blur_geometry *g = geometry;
    dsg_status err = check_geometry(shape, g, sizeof(dsg_real));
    if (err != DSG_OK)
        return err;
    for (size_t i = 0; i < g->kh * g->kw; i++)
        if (!isfinite((dsg_real)kernel[i]))
            return DSG_ENONFINITE;

    DSG_NAME(blur) *b = dsg_calloc(1, sizeof *b);
    if (!b)
        return DSG_ENOMEM;
    b->op.in = shape;
    b->op.out = blurred_shape(shape, g);
    b->border = g->border;
    support k = b->k = find_support(kernel, g);
    size_t top = g->centre_row - k.first_row, left = g->centre_column - k.first_column;
    if (!extension_make(&b->rows, top, shape.h, k.h - 1 - top + g->grow_h, g->border) ||
        !extension_make(&b->columns, left, shape.w, k.w - 1 - left + g->grow_w,
                        g->border)) {
        DSG_NAME(blur_destroy)(&b->op);
        return DSG_ENOMEM;
    }

    size_t row, column;
    bool separable =
        is_separable(kernel, g->kh, g->kw, RANK_ONE_TOLERANCE, &row, &column);
    if (form == DSG_BLUR_AUTO && separable) {
        form = DSG_BLUR_SEPARABLE;
    } else if (form == DSG_BLUR_AUTO || form == DSG_BLUR_EXACT) {
        size_t h = extended(&b->rows), w = extended(&b->columns);
        size_t taps = count_taps(kernel, g->kh * g->kw);
        bool sparse = sparse_cost(b->op.out, h, w, taps) <= fft_cost(h, w);
        form = sparse ? DSG_BLUR_SPARSE : DSG_BLUR_FFT;
    }
    b->form = form;

    err = DSG_EVALUE;
    if (form == DSG_BLUR_SEPARABLE && separable)
        err = DSG_NAME(make_separable)(b, kernel, g->kw, row, column);
    else if (form == DSG_BLUR_SPARSE)
        err = DSG_NAME(make_sparse)(b, kernel, g->kw);
    else if (form == DSG_BLUR_FFT)
        err = DSG_NAME(make_fft)(b, kernel, g->kw);
    if (err != DSG_OK) {
        DSG_NAME(blur_destroy)(&b->op);
        return err;
    }
    *op = &b->op;
    return DSG_OK;
}

dsg_blur_form DSG_NAME(dsg_blur_get_form)(const DSG_NAME(dsg_op) *op)
{
    return ((const DSG_NAME(blur) *)op)->form;
}

#undef RANK_ONE_TOLERANCE
