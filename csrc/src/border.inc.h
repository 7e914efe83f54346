/* Padding and folding for one precision.  A plane has row stride ld. */

static inline void DSG_NAME(copy_plane)(dsg_real *restrict out, size_t ld_out,
                                        const dsg_real *restrict in, size_t ld_in,
                                        size_t h, size_t w)
{
    for (size_t i = 0; i < h; i++)
        memcpy(out + i * ld_out, in + i * ld_in, w * sizeof *out);
}

static inline void DSG_NAME(zero_plane)(dsg_real *out, size_t ld, size_t h, size_t w)
{
    for (size_t i = 0; i < h; i++)
        memset(out + i * ld, 0, w * sizeof *out);
}

/* p has extended(e) rows of w entries, of which the e->n middle ones are set: fills in
 * the others. */
static inline void DSG_NAME(pad_rows)(dsg_real *p, size_t ld, const extension *e,
                                      size_t w)
{
    dsg_real *first = p + e->before * ld;
    for (size_t k = 0; k < e->before + e->after; k++) {
        dsg_real *row =
            k < e->before ? first - (k + 1) * ld : first + (e->n + k - e->before) * ld;
        if (e->source[k] == DSG_OUTSIDE)
            memset(row, 0, w * sizeof *row);
        else
            memcpy(row, first + e->source[k] * ld, w * sizeof *row);
    }
}

/* The same across: each of the h rows has extended(e) entries.  The reflection is
 * spelled out, here and below, for the compiler to vectorise it: 4 % of a blur of
 * 64 x 64 with 25 taps. */
static inline void DSG_NAME(pad_columns)(dsg_real *p, size_t ld, size_t h,
                                         const extension *e)
{
    for (size_t i = 0; i < h; i++) {
        dsg_real *first = p + i * ld + e->before, *behind = first + e->n;
        if (e->border == DSG_BORDER_REFLECT) {
            for (size_t k = 0; k < e->before; k++)
                *(first - 1 - k) = first[1 + k];
            for (size_t k = 0; k < e->after; k++)
                behind[k] = *(behind - 2 - k);
            continue;
        }
        for (size_t k = 0; k < e->before; k++) {
            size_t s = e->source[k];
            *(first - 1 - k) = s == DSG_OUTSIDE ? 0 : first[s];
        }
        for (size_t k = 0; k < e->after; k++) {
            size_t s = e->source[e->before + k];
            behind[k] = s == DSG_OUTSIDE ? 0 : first[s];
        }
    }
}

/* The adjoint of pad_rows: adds every padding row to the row it shows. */
static inline void DSG_NAME(fold_rows)(dsg_real *p, size_t ld, const extension *e,
                                       size_t w)
{
    dsg_real *first = p + e->before * ld;
    for (size_t k = 0; k < e->before + e->after; k++) {
        if (e->source[k] == DSG_OUTSIDE)
            continue;
        const dsg_real *row =
            k < e->before ? first - (k + 1) * ld : first + (e->n + k - e->before) * ld;
        dsg_real *target = first + e->source[k] * ld;
        for (size_t j = 0; j < w; j++)
            target[j] += row[j];
    }
}

/* The adjoint of pad_columns. */
static inline void DSG_NAME(fold_columns)(dsg_real *p, size_t ld, size_t h,
                                          const extension *e)
{
    for (size_t i = 0; i < h; i++) {
        dsg_real *first = p + i * ld + e->before, *behind = first + e->n;
        if (e->border == DSG_BORDER_REFLECT) {
            for (size_t k = 0; k < e->before; k++)
                first[1 + k] += *(first - 1 - k);
            for (size_t k = 0; k < e->after; k++)
                *(behind - 2 - k) += behind[k];
            continue;
        }
        for (size_t k = 0; k < e->before; k++)
            if (e->source[k] != DSG_OUTSIDE)
                first[e->source[k]] += *(first - 1 - k);
        for (size_t k = 0; k < e->after; k++)
            if (e->source[e->before + k] != DSG_OUTSIDE)
                first[e->source[e->before + k]] += behind[k];
    }
}

/* Pads a whole image x (rows->n, columns->n) into p. */
static inline void DSG_NAME(pad_image)(dsg_real *restrict p, size_t ld,
                                       const dsg_real *restrict x,
                                       const extension *rows, const extension *columns)
{
    dsg_real *middle = p + rows->before * ld;
    size_t h = rows->n, w = columns->n;
    DSG_NAME(copy_plane)(middle + columns->before, ld, x, w, h, w);
    DSG_NAME(pad_columns)(middle, ld, h, columns);
    DSG_NAME(pad_rows)(p, ld, rows, extended(columns));
}

/* The adjoint: folds p into g (rows->n, columns->n); p is changed. */
static inline void DSG_NAME(fold_image)(dsg_real *restrict g, dsg_real *restrict p,
                                        size_t ld, const extension *rows,
                                        const extension *columns)
{
    dsg_real *middle = p + rows->before * ld;
    size_t h = rows->n, w = columns->n;
    DSG_NAME(fold_rows)(p, ld, rows, extended(columns));
    DSG_NAME(fold_columns)(middle, ld, h, columns);
    DSG_NAME(copy_plane)(g, w, middle + columns->before, ld, h, w);
}
