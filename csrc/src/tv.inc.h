/* Total variation for one precision. */

/* ---- prox ----
 *
 * A group is what shares roots: one channel, or all of an image.  An iteration is one
 * pass down its rows, in place: row i of x = v - weight D^T q needs q in rows i - 1 and
 * i, so that row i + 1 is made before row i of q changes. */

typedef struct DSG_NAME(tv) {
    dsg_real *out, *dual;
    const dsg_real *v;
    dsg_shape shape;
    size_t channels; /* of a group */
    const dsg_tv_options *options;
} DSG_NAME(tv);

/* One row of v - weight D^T q.  above is row i - 1 of qy, NULL in the first row; qy is
 * NULL in the last. */
DSG_CLONES static void DSG_NAME(primal_row)(dsg_real *restrict x,
                                            const dsg_real *restrict v,
                                            const dsg_real *restrict qx,
                                            const dsg_real *restrict qy,
                                            const dsg_real *restrict above, size_t w,
                                            dsg_real weight)
{
    if (w == 1) {
        x[0] = v[0];
    } else {
        x[0] = v[0] + weight * qx[0];
        for (size_t j = 1; j < w - 1; j++)
            x[j] = v[j] - weight * (qx[j - 1] - qx[j]);
        x[w - 1] = v[w - 1] - weight * qx[w - 2];
    }
    if (qy)
        for (size_t j = 0; j < w; j++)
            x[j] += weight * qy[j];
    if (above)
        for (size_t j = 0; j < w; j++)
            x[j] -= weight * above[j];
}

/* q <- q + step D x in one row, and its squares into square; below is NULL in the last
 * row. */
DSG_CLONES static void DSG_NAME(ascend_row)(
    dsg_real *restrict qx, dsg_real *restrict qy, dsg_real *restrict square,
    const dsg_real *restrict x, const dsg_real *restrict below, size_t w, dsg_real step)
{
    for (size_t j = 0; j + 1 < w; j++) {
        qx[j] += step * (x[j + 1] - x[j]);
        square[j] += qx[j] * qx[j];
    }
    qx[w - 1] = 0;
    for (size_t j = 0; j < w; j++) {
        qy[j] = below ? qy[j] + step * (below[j] - x[j]) : 0;
        square[j] += qy[j] * qy[j];
    }
}

/* square <- 1 / max(1, sqrt(square)) */
DSG_CLONES static void DSG_NAME(shrinkage)(dsg_real *restrict square, size_t w)
{
    for (size_t j = 0; j < w; j++) {
#if DSG_PRECISION == 32
        dsg_real length = sqrtf(square[j]);
#else
        dsg_real length = sqrt(square[j]);
#endif
        square[j] = 1 / (length > 1 ? length : 1);
    }
}

/* p <- shrink q and q <- that + momentum (that - old p) */
DSG_CLONES static void DSG_NAME(project_row)(dsg_real *restrict p, dsg_real *restrict q,
                                             const dsg_real *restrict shrink, size_t w,
                                             dsg_real momentum)
{
    for (size_t j = 0; j < w; j++) {
        dsg_real next = q[j] * shrink[j];
        q[j] = next + momentum * (next - p[j]);
        p[j] = next;
    }
}

/* Rows i of x for every channel of a group, from q (2, channels, h, w). */
static void DSG_NAME(primal_rows)(const DSG_NAME(tv) *k, dsg_real *x, const dsg_real *v,
                                  const dsg_real *qx, const dsg_real *qy, size_t i)
{
    size_t h = k->shape.h, w = k->shape.w;
    for (size_t c = 0; c < k->channels; c++) {
        size_t at = (c * h + i) * w;
        DSG_NAME(primal_row)
        (x + c * w, v + at, qx + at, i + 1 < h ? qy + at : NULL, i ? qy + at - w : NULL,
         w, (dsg_real)k->options->weight);
    }
}

/* Scratch: q, two rows of x for every channel, a row of squares. */
static dsg_status DSG_NAME(prox_item)(void *arg, size_t item, void *scratch)
{
    const DSG_NAME(tv) *k = arg;
    size_t c = k->channels, h = k->shape.h, w = k->shape.w, plane = h * w;
    size_t groups = k->shape.c / c, size = c * plane;
    size_t image = item / groups, group = item % groups;

    const dsg_real *v = k->v + item * size;
    dsg_real *out = k->out + item * size;
    dsg_real *px = k->dual + (2 * image * groups + group) * size;
    dsg_real *py = px + groups * size;
    dsg_real *qx = scratch, *qy = qx + size;
    dsg_real *row = qy + size, *next = row + c * w, *square = next + c * w;

    memcpy(qx, px, size * sizeof *qx);
    memcpy(qy, py, size * sizeof *qy);
    const dsg_real step = (dsg_real)(1.0 / (8.0 * k->options->weight));
    double t = 1.0;
    for (size_t iteration = 0; iteration < k->options->iterations; iteration++) {
        double t_next = (1.0 + sqrt(1.0 + 4.0 * t * t)) / 2.0;
        dsg_real momentum = (dsg_real)((t - 1.0) / t_next);
        t = t_next;

        DSG_NAME(primal_rows)(k, row, v, qx, qy, 0);
        for (size_t i = 0; i < h; i++) {
            if (i + 1 < h)
                DSG_NAME(primal_rows)(k, next, v, qx, qy, i + 1);
            memset(square, 0, w * sizeof *square);
            for (size_t a = 0; a < c; a++) {
                size_t at = a * plane + i * w;
                const dsg_real *below = i + 1 < h ? next + a * w : NULL;
                DSG_NAME(ascend_row)
                (qx + at, qy + at, square, row + a * w, below, w, step);
            }
            DSG_NAME(shrinkage)(square, w);
            for (size_t a = 0; a < c; a++) {
                size_t at = a * plane + i * w;
                DSG_NAME(project_row)(px + at, qx + at, square, w, momentum);
                DSG_NAME(project_row)(py + at, qy + at, square, w, momentum);
            }
            dsg_real *swap = row;
            row = next;
            next = swap;
        }
    }
    for (size_t i = 0; i < h; i++) {
        DSG_NAME(primal_rows)(k, row, v, px, py, i);
        for (size_t a = 0; a < c; a++)
            memcpy(out + a * plane + i * w, row + a * w, w * sizeof *out);
    }
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_tv_prox)(dsg_real *restrict out, const dsg_real *restrict v,
                                 dsg_real *restrict dual, size_t b, dsg_shape shape,
                                 const dsg_tv_options *options)
{
    double weight = options->weight;
    if (options->iterations == 0 || !(weight > 0.0) || !isfinite((dsg_real)weight) ||
        !isfinite((dsg_real)(1.0 / weight)))
        return DSG_EVALUE;
    /* room for q, the rows and the squares too */
    if (!dsg_shape_valid(shape, 5 * sizeof(dsg_real)))
        return DSG_ESHAPE;
    size_t channels = options->coupled ? shape.c : 1;
    DSG_NAME(tv)
    k = {.out = out,
         .dual = dual,
         .v = v,
         .shape = shape,
         .channels = channels,
         .options = options};
    size_t scratch = 2 * channels * (shape.h + 1) * shape.w + shape.w;
    return dsg_parallel_for(b * (shape.c / channels), scratch * sizeof(dsg_real),
                            DSG_NAME(prox_item), &k);
}

/* ---- norm ---- */

typedef struct DSG_NAME(tv_sum) {
    double *out;
    const dsg_real *x;
    dsg_shape shape;
    bool coupled;
} DSG_NAME(tv_sum);

/* Adds dx^2 + dy^2 of a row; below is the row itself in the last. */
DSG_CLONES static void DSG_NAME(squares_row)(double *restrict square, const dsg_real *x,
                                             const dsg_real *below, size_t w)
{
    for (size_t j = 0; j < w; j++) {
        double dy = (double)below[j] - x[j];
        square[j] += dy * dy;
    }
    for (size_t j = 0; j + 1 < w; j++) {
        double dx = (double)x[j + 1] - x[j];
        square[j] += dx * dx;
    }
}

/* Scratch: a row of squares. */
static dsg_status DSG_NAME(norm_item)(void *arg, size_t item, void *scratch)
{
    const DSG_NAME(tv_sum) *k = arg;
    size_t c = k->shape.c, h = k->shape.h, w = k->shape.w;
    const dsg_real *x = k->x + item * c * h * w;
    double *square = scratch, sum = 0.0;
    size_t together = k->coupled ? c : 1;
    for (size_t group = 0; group < c; group += together)
        for (size_t i = 0; i < h; i++) {
            memset(square, 0, w * sizeof *square);
            for (size_t a = group; a < group + together; a++) {
                const dsg_real *row = x + (a * h + i) * w;
                DSG_NAME(squares_row)(square, row, i + 1 < h ? row + w : row, w);
            }
            double of_row = 0.0;
            for (size_t j = 0; j < w; j++)
                of_row += sqrt(square[j]);
            sum += of_row;
        }
    k->out[item] = sum;
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_tv_norm)(double *restrict out, const dsg_real *restrict x,
                                 size_t b, dsg_shape shape, bool coupled)
{
    if (!dsg_shape_valid(shape, sizeof(double)))
        return DSG_ESHAPE;
    DSG_NAME(tv_sum)
    k = {.out = out, .x = x, .shape = shape, .coupled = coupled};
    return dsg_parallel_for(b, shape.w * sizeof(double), DSG_NAME(norm_item), &k);
}
