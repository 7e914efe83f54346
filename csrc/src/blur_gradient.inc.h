/* The gradient with respect to the kernel for one precision:
 *
 *     gradient[a, b] = sum_{c, i, j} v[c, i, j] xpad[c, i + a, j + b]
 *
 * that is, the padded image correlated with v, (kh, kw) outputs. */

/* Row by row of v, whose entries are the taps; a sum of more than CHUNK terms is
 * continued in double. */
static dsg_status DSG_NAME(gradient_direct)(dsg_real *restrict gradient,
                                            const dsg_real *restrict x,
                                            const dsg_real *restrict v, dsg_shape out,
                                            const dsg_blur_geometry *g,
                                            const extension *rows,
                                            const extension *columns)
{
    enum { CHUNK = 64 };
    size_t offset[CHUNK];
    dsg_real weight[CHUNK];
    DSG_NAME(taps) taps = {.offset = offset, .weight = weight};
    size_t n = g->kh * g->kw, height = out.h + round_up(g->kh, ROWS);
    size_t ld = row_stride(out.w + round_up(g->kw, LANES)), size;
    if (!dsg_mul(height, ld, &size))
        return DSG_ESHAPE;
    for (size_t j = 0; j < CHUNK; j++)
        offset[j] = j;

    dsg_status err = DSG_ENOMEM;
    dsg_real *part = NULL;
    double *sum = NULL;
    dsg_real *p = dsg_alloc(size, sizeof *p);
    if (!p)
        goto done;
    part = dsg_alloc(n, sizeof *part);
    if (!part)
        goto done;
    sum = dsg_calloc(n, sizeof *sum);
    if (!sum)
        goto done;

    for (size_t c = 0; c < out.c; c++, x += rows->n * columns->n) {
        DSG_NAME(pad_image)(p, ld, x, rows, columns);
        for (size_t i = 0; i < out.h; i++, v += out.w)
            for (size_t j = 0; j < out.w; j += CHUNK) {
                taps.n = out.w - j < CHUNK ? out.w - j : CHUNK;
                memcpy(weight, v + j, taps.n * sizeof *v);
                DSG_NAME(correlate)
                (part, g->kw, g->kh, g->kw, p + i * ld + j, ld, &taps);
                for (size_t k = 0; k < n; k++)
                    sum[k] += part[k];
            }
    }
    for (size_t k = 0; k < n; k++)
        gradient[k] = (dsg_real)sum[k];
    err = DSG_OK;
done:
    dsg_free(sum);
    dsg_free(part);
    dsg_free(p);
    return err;
}

/* sum <- sum + a conj(b), n complex numbers. */
DSG_CLONES static void DSG_NAME(multiply_add)(dsg_real *restrict sum,
                                              const dsg_real *restrict a,
                                              const dsg_real *restrict b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        sum[2 * i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
        sum[2 * i + 1] += a[2 * i + 1] * b[2 * i] - a[2 * i] * b[2 * i + 1];
    }
}

/* On a grid that holds the padded image: places i + a < out.h + kh - 1 do not wrap
 * around.  One inverse transform serves all channels. */
static dsg_status DSG_NAME(gradient_fft)(dsg_real *restrict gradient,
                                         const dsg_real *restrict x,
                                         const dsg_real *restrict v, dsg_shape out,
                                         const dsg_blur_geometry *g,
                                         const extension *rows,
                                         const extension *columns)
{
    size_t h = extended(rows), w = extended(columns), plane, spectrum;
    size_t fft_h = grid_side(h), fft_w = grid_side(w);
    const DSG_NAME(dsg_fft) *plan;
    dsg_status err = DSG_NAME(size_grid)(&plane, &spectrum, fft_h, fft_w);
    if (err == DSG_OK)
        err = DSG_NAME(dsg_fft_get)(&plan, fft_h, fft_w);
    if (err != DSG_OK)
        return err;
    dsg_real *grid = dsg_alloc(plane + 3 * spectrum, sizeof *grid);
    if (!grid)
        return DSG_ENOMEM;

    size_t bins = fft_h * (fft_w / 2 + 1);
    dsg_real *fx = grid + plane, *fv = fx + spectrum, *sum = fv + spectrum;
    memset(sum, 0, 2 * bins * sizeof *sum);
    for (size_t c = 0; c < out.c; c++) {
        DSG_NAME(pad_image)(grid, fft_w, x, rows, columns);
        DSG_NAME(zero_rest)(grid, fft_h, fft_w, h, w);
        DSG_NAME(dsg_fft_forward)(plan, fx, grid);
        DSG_NAME(copy_plane)(grid, fft_w, v, out.w, out.h, out.w);
        DSG_NAME(zero_rest)(grid, fft_h, fft_w, out.h, out.w);
        DSG_NAME(dsg_fft_forward)(plan, fv, grid);
        DSG_NAME(multiply_add)(sum, fx, fv, bins);
        x += rows->n * columns->n;
        v += out.h * out.w;
    }
    DSG_NAME(dsg_fft_inverse)(plan, grid, sum);
    dsg_real scale = (dsg_real)(1.0 / ((double)fft_h * (double)fft_w));
    for (size_t a = 0; a < g->kh; a++)
        for (size_t b = 0; b < g->kw; b++)
            gradient[a * g->kw + b] = scale * grid[a * fft_w + b];
    dsg_free(grid);
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_blur_kernel_gradient)(dsg_real *restrict gradient,
                                              const dsg_real *restrict x,
                                              const dsg_real *restrict v,
                                              dsg_shape shape,
                                              const dsg_blur_geometry *geometry)
{
    const dsg_blur_geometry *g = geometry;
    dsg_status err = check_geometry(shape, g, sizeof(dsg_real));
    if (err != DSG_OK)
        return err;
    dsg_shape out = blurred_shape(shape, g);
    extension rows = {0}, columns = {0};
    err = DSG_ENOMEM;
    if (!extension_make(&rows, g->centre_row, shape.h,
                        g->kh - 1 - g->centre_row + g->grow_h, g->border))
        goto done;
    if (!extension_make(&columns, g->centre_column, shape.w,
                        g->kw - 1 - g->centre_column + g->grow_w, g->border))
        goto done;

    double tiles = (double)round_up(g->kh, ROWS) * (double)round_up(g->kw, LANES);
    double direct = SPARSE_NS * tiles * (double)dsg_shape_size(out);
    double grids = (2.0 * (double)out.c + 1.0) / 4.0; /* of fft_cost's four */
    if (direct <= grids * fft_cost(extended(&rows), extended(&columns)))
        err = DSG_NAME(gradient_direct)(gradient, x, v, out, g, &rows, &columns);
    else
        err = DSG_NAME(gradient_fft)(gradient, x, v, out, g, &rows, &columns);
done:
    dsg_free(columns.source);
    dsg_free(rows.source);
    return err;
}
