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
    support k;
    size_t ld, buffer; /* row stride and size of each of the two buffers, in elements */

    /* separable: down the columns, then across the rows; sparse: only down, holding
     * all taps */
    DSG_NAME(taps) down, down_adjoint, across, across_adjoint;

    /* fft */
    const DSG_NAME(dsg_fft) *plan;
    size_t fft_h, fft_w;
    dsg_real *transfer; /* transform of the kernel over fft_h * fft_w */
} DSG_NAME(blur);

/* ---- images and their borders ---- */

static void DSG_NAME(copy_plane)(dsg_real *restrict out, size_t ld_out,
                                 const dsg_real *restrict in, size_t ld_in, size_t h,
                                 size_t w)
{
    for (size_t i = 0; i < h; i++)
        memcpy(out + i * ld_out, in + i * ld_in, w * sizeof *out);
}

static void DSG_NAME(zero_plane)(dsg_real *out, size_t ld, size_t h, size_t w)
{
    for (size_t i = 0; i < h; i++)
        memset(out + i * ld, 0, w * sizeof *out);
}

/* p has top + h + bottom rows, of which the h middle ones are set: fills the others by
 * reflection.  top, bottom < h. */
static void DSG_NAME(pad_rows)(dsg_real *p, size_t ld, size_t h, size_t w, size_t top,
                               size_t bottom)
{
    dsg_real *first = p + top * ld, *last = p + (top + h - 1) * ld;
    for (size_t i = 1; i <= top; i++)
        memcpy(first - i * ld, first + i * ld, w * sizeof *p);
    for (size_t i = 1; i <= bottom; i++)
        memcpy(last + i * ld, last - i * ld, w * sizeof *p);
}

/* The same across: each of the h rows has left + w + right entries. */
static void DSG_NAME(pad_columns)(dsg_real *p, size_t ld, size_t h, size_t w,
                                  size_t left, size_t right)
{
    for (size_t i = 0; i < h; i++) {
        dsg_real *first = p + i * ld + left, *last = first + w - 1;
        for (size_t j = 1; j <= left; j++)
            *(first - j) = first[j];
        for (size_t j = 1; j <= right; j++)
            last[j] = *(last - j);
    }
}

/* The adjoint of pad_rows: adds every padding row to the row it was copied from. */
static void DSG_NAME(fold_rows)(dsg_real *p, size_t ld, size_t h, size_t w, size_t top,
                                size_t bottom)
{
    dsg_real *first = p + top * ld, *last = p + (top + h - 1) * ld;
    for (size_t i = 1; i <= top; i++)
        for (size_t j = 0; j < w; j++)
            first[i * ld + j] += *(first - i * ld + j);
    for (size_t i = 1; i <= bottom; i++)
        for (size_t j = 0; j < w; j++)
            *(last - i * ld + j) += last[i * ld + j];
}

/* The adjoint of pad_columns. */
static void DSG_NAME(fold_columns)(dsg_real *p, size_t ld, size_t h, size_t w,
                                   size_t left, size_t right)
{
    for (size_t i = 0; i < h; i++) {
        dsg_real *first = p + i * ld + left, *last = first + w - 1;
        for (size_t j = 1; j <= left; j++)
            first[j] += *(first - j);
        for (size_t j = 1; j <= right; j++)
            *(last - j) += last[j];
    }
}

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
    const support *k = &b->k;
    size_t h = op->in.h, w = op->in.w, ld = b->ld;
    dsg_real *p = ws, *q = p + b->buffer;
    for (size_t c = 0; c < op->in.c; c++, x += h * w, y += h * w) {
        DSG_NAME(copy_plane)(p + k->top * ld, ld, x, w, h, w);
        DSG_NAME(pad_rows)(p, ld, h, w, k->top, k->bottom);
        DSG_NAME(correlate)(q + k->left, ld, h, w, p, ld, &b->down);
        DSG_NAME(pad_columns)(q, ld, h, w, k->left, k->right);
        DSG_NAME(correlate)(y, w, h, w, q, ld, &b->across);
    }
}

static void DSG_NAME(separable_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                    const dsg_real *restrict x,
                                    const dsg_real *restrict v, void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    const support *k = &b->k;
    size_t h = op->in.h, w = op->in.w, ld = b->ld;
    size_t height = k->top + k->bottom, width = k->left + k->right;
    dsg_real *p = ws, *q = p + b->buffer;
    (void)x;
    for (size_t c = 0; c < op->in.c; c++, v += h * w, g += h * w) {
        DSG_NAME(zero_plane)(p, ld, height, w);
        DSG_NAME(copy_plane)(p + height * ld, ld, v, w, h, w);
        DSG_NAME(zero_plane)(p + (height + h) * ld, ld, height, w);
        DSG_NAME(correlate)(q + width, ld, h + height, w, p, ld, &b->down_adjoint);
        DSG_NAME(fold_rows)(q + width, ld, h, w, k->top, k->bottom);

        dsg_real *middle = q + k->top * ld;
        DSG_NAME(zero_plane)(middle, ld, h, width);
        DSG_NAME(zero_plane)(middle + width + w, ld, h, width);
        DSG_NAME(correlate)(p, ld, h, w + width, middle, ld, &b->across_adjoint);
        DSG_NAME(fold_columns)(p, ld, h, w, k->left, k->right);
        DSG_NAME(copy_plane)(g, w, p + k->left, ld, h, w);
    }
}

/* ---- sparse ---- */

static void DSG_NAME(sparse_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                     const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    const support *k = &b->k;
    size_t h = op->in.h, w = op->in.w, ld = b->ld;
    dsg_real *p = ws;
    for (size_t c = 0; c < op->in.c; c++, x += h * w, y += h * w) {
        dsg_real *middle = p + k->top * ld;
        DSG_NAME(copy_plane)(middle + k->left, ld, x, w, h, w);
        DSG_NAME(pad_columns)(middle, ld, h, w, k->left, k->right);
        DSG_NAME(pad_rows)(p, ld, h, k->left + w + k->right, k->top, k->bottom);
        DSG_NAME(correlate)(y, w, h, w, p, ld, &b->down);
    }
}

static void DSG_NAME(sparse_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                 const dsg_real *restrict x, const dsg_real *restrict v,
                                 void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    const support *k = &b->k;
    size_t h = op->in.h, w = op->in.w, ld = b->ld;
    size_t height = k->top + k->bottom, width = k->left + k->right;
    dsg_real *p = ws, *q = p + b->buffer;
    (void)x;
    DSG_NAME(zero_plane)(p, ld, h + 2 * height, w + 2 * width);
    for (size_t c = 0; c < op->in.c; c++, v += h * w, g += h * w) {
        DSG_NAME(copy_plane)(p + height * ld + width, ld, v, w, h, w);
        DSG_NAME(correlate)
        (q, ld, h + height, w + width, p, ld, &b->down_adjoint);
        DSG_NAME(fold_rows)(q, ld, h, w + width, k->top, k->bottom);
        DSG_NAME(fold_columns)(q + k->top * ld, ld, h, w, k->left, k->right);
        DSG_NAME(copy_plane)(g, w, q + k->top * ld + k->left, ld, h, w);
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
    const support *k = &b->k;
    size_t h = op->in.h, w = op->in.w, ld = b->fft_w;
    size_t height = h + k->top + k->bottom, width = w + k->left + k->right;
    dsg_real *p = ws;
    for (size_t c = 0; c < op->in.c; c++, x += h * w, y += h * w) {
        dsg_real *middle = p + k->top * ld;
        DSG_NAME(copy_plane)(middle + k->left, ld, x, w, h, w);
        DSG_NAME(pad_columns)(middle, ld, h, w, k->left, k->right);
        DSG_NAME(pad_rows)(p, ld, h, width, k->top, k->bottom);
        DSG_NAME(zero_plane)(p + width, ld, height, ld - width);
        DSG_NAME(zero_plane)(p + height * ld, ld, b->fft_h - height, ld);
        /* outputs i < h meet inputs i + a < height <= fft_h: nothing wraps around */
        DSG_NAME(convolve_grid)(b, p, -1);
        DSG_NAME(copy_plane)(y, w, p, ld, h, w);
    }
}

static void DSG_NAME(fft_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                              const dsg_real *restrict x, const dsg_real *restrict v,
                              void *ws)
{
    const DSG_NAME(blur) *b = (const DSG_NAME(blur) *)op;
    const support *k = &b->k;
    size_t h = op->in.h, w = op->in.w, ld = b->fft_w;
    dsg_real *p = ws;
    (void)x;
    for (size_t c = 0; c < op->in.c; c++, v += h * w, g += h * w) {
        DSG_NAME(copy_plane)(p, ld, v, w, h, w);
        DSG_NAME(zero_plane)(p + w, ld, h, ld - w);
        DSG_NAME(zero_plane)(p + h * ld, ld, b->fft_h - h, ld);
        DSG_NAME(convolve_grid)(b, p, 1);
        DSG_NAME(fold_rows)(p, ld, h, k->left + w + k->right, k->top, k->bottom);
        DSG_NAME(fold_columns)(p + k->top * ld, ld, h, w, k->left, k->right);
        DSG_NAME(copy_plane)(g, w, p + k->top * ld + k->left, ld, h, w);
    }
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
    dsg_free(b);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(separable_class) = {
    .linear = true,
    .forward = DSG_NAME(separable_forward),
    .vjp = DSG_NAME(separable_vjp),
    .destroy = DSG_NAME(blur_destroy),
};

static const DSG_NAME(dsg_op_class) DSG_NAME(sparse_class) = {
    .linear = true,
    .forward = DSG_NAME(sparse_forward),
    .vjp = DSG_NAME(sparse_vjp),
    .destroy = DSG_NAME(blur_destroy),
};

static const DSG_NAME(dsg_op_class) DSG_NAME(fft_class) = {
    .linear = true,
    .forward = DSG_NAME(fft_forward),
    .vjp = DSG_NAME(fft_vjp),
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
    size_t h = b->op.in.h, w = b->op.in.w, bytes;
    size_t height = b->k.top + b->k.bottom, width = b->k.left + b->k.right;
    /* whole tiles of the padded image plus the reach of the taps; an odd number of
     * tiles a row keeps rows off each other's cache sets */
    size_t rows = round_up(h + height, ROWS) + height;
    b->ld = round_up(round_up(w + width, LANES) + width, LANES);
    if (b->ld / LANES % 2 == 0)
        b->ld += LANES;
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
    size_t h = k->top + 1 + k->bottom, w = k->left + 1 + k->right;
    double largest = kernel[row * kw + column];
    double divisor = largest != 0.0 ? largest : 1.0;
    b->op.class = &DSG_NAME(separable_class);
    dsg_status err = DSG_NAME(size_buffers)(b);
    if (err == DSG_OK)
        err = DSG_NAME(make_taps)(&b->down, &b->down_adjoint,
                                  kernel + k->first_row * kw + column, h, 1, kw, 1.0,
                                  b->ld);
    if (err == DSG_OK)
        err = DSG_NAME(make_taps)(&b->across, &b->across_adjoint,
                                  kernel + row * kw + k->first_column, 1, w, kw,
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
    return DSG_NAME(make_taps)(
        &b->down, &b->down_adjoint, kernel + k->first_row * kw + k->first_column,
        k->top + 1 + k->bottom, k->left + 1 + k->right, kw, 1.0, b->ld);
}

static dsg_status DSG_NAME(make_fft)(DSG_NAME(blur) *b, const double *kernel, size_t kw)
{
    const support *k = &b->k;
    b->op.class = &DSG_NAME(fft_class);
    b->fft_h = grid_side(b->op.in.h + k->top + k->bottom);
    b->fft_w = grid_side(b->op.in.w + k->left + k->right);
    size_t half = b->fft_w / 2 + 1, grid, spectrum;
    if (!dsg_mul(b->fft_h, b->fft_w, &grid) ||
        !dsg_mul(b->fft_h, 2 * half, &spectrum) ||
        spectrum > PTRDIFF_MAX / (4 * sizeof(dsg_real)))
        return DSG_ESHAPE;
    b->buffer = round_up(grid, DSG_ALIGN / sizeof(dsg_real));
    b->op.workspace = (b->buffer + spectrum) * sizeof(dsg_real);

    dsg_status err = DSG_NAME(dsg_fft_get)(&b->plan, b->fft_h, b->fft_w);
    if (err != DSG_OK)
        return err;
    b->transfer = dsg_alloc(spectrum, sizeof *b->transfer);
    dsg_real *x = dsg_calloc(grid, sizeof *x);
    if (!b->transfer || !x) {
        dsg_free(x);
        return DSG_ENOMEM;
    }
    for (size_t a = 0; a <= k->top + k->bottom; a++)
        for (size_t c = 0; c <= k->left + k->right; c++) {
            double value = kernel[(k->first_row + a) * kw + k->first_column + c];
            x[a * b->fft_w + c] = (dsg_real)(value / (double)grid);
        }
    DSG_NAME(dsg_fft_forward)(b->plan, b->transfer, x);
    dsg_free(x);
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_blur_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                     const double *kernel, size_t kh, size_t kw,
                                     dsg_blur_form form)
{
    if (!dsg_shape_valid(shape, sizeof(dsg_real)) || kh == 0 || kw == 0)
        return DSG_ESHAPE;
    if (kh / 2 >= shape.h || kw / 2 >= shape.w)
        return DSG_ESHAPE;
    for (size_t i = 0; i < kh * kw; i++)
        if (!isfinite((dsg_real)kernel[i]))
            return DSG_ENONFINITE;

    DSG_NAME(blur) *b = dsg_calloc(1, sizeof *b);
    if (!b)
        return DSG_ENOMEM;
    b->op.in = b->op.out = shape;
    b->k = find_support(kernel, kh, kw);

    size_t row, column;
    bool separable = is_separable(kernel, kh, kw, RANK_ONE_TOLERANCE, &row, &column);
    if (form == DSG_BLUR_AUTO && separable) {
        form = DSG_BLUR_SEPARABLE;
    } else if (form == DSG_BLUR_AUTO) {
        size_t taps = count_taps(kernel, kh * kw);
        bool sparse = sparse_cost(shape, &b->k, taps) <= fft_cost(shape, &b->k);
        form = sparse ? DSG_BLUR_SPARSE : DSG_BLUR_FFT;
    }
    b->form = form;

    dsg_status err = DSG_EVALUE;
    if (form == DSG_BLUR_SEPARABLE && separable)
        err = DSG_NAME(make_separable)(b, kernel, kw, row, column);
    else if (form == DSG_BLUR_SPARSE)
        err = DSG_NAME(make_sparse)(b, kernel, kw);
    else if (form == DSG_BLUR_FFT)
        err = DSG_NAME(make_fft)(b, kernel, kw);
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
