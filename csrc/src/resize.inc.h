/* The resizer for one precision.
 *
 * Down the columns an output row is a weighted sum of input rows.  Across, a row is
 * first dealt into `factor` phases, every factor-th entry each, and then the output row
 * is a weighted sum of shifted phases.  Both, and both adjoints, are rows of a sparse
 * matrix times vectors: one kernel computes them. */

/* Row i: sum over t = begin[i]..begin[i+1]-1 of weight[t] in[offset[t] ..]. */
typedef struct DSG_NAME(sums) {
    size_t *begin, *offset;
    dsg_real *weight;
} DSG_NAME(sums);

typedef struct DSG_NAME(resize) {
    DSG_NAME(dsg_op) op;
    size_t factor;
    DSG_NAME(sums) down, down_adjoint, across, across_adjoint;

    size_t reach;         /* most outputs, less one, that one phase entry goes into */
    size_t phase;         /* length of a phase: op.out.w + reach */
    size_t *source;       /* factor * phase: the column each phase entry comes from */
    size_t phases, image; /* where these begin in the workspace, in reals */
} DSG_NAME(resize);

/* out[j] = sum_t weight[t] in[offset[t] + j], j < n, taps > 0.  Blocks of 4 x 16 stay
 * in registers over all taps; for that gcc 12 needs two inner loops (a single one is
 * unrolled and jammed, then not vectorised) and a start from the first tap. */
DSG_CLONES static void DSG_NAME(weighted_sum)(dsg_real *restrict out,
                                              const dsg_real *restrict in,
                                              const size_t *restrict offset,
                                              const dsg_real *restrict weight,
                                              size_t taps, size_t n)
{
    size_t at = 0;
    for (; at + 64 <= n; at += 64) {
        dsg_real sum[4][16];
        const dsg_real *first = in + offset[0] + at;
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j < 16; j++)
                sum[i][j] = weight[0] * first[16 * i + j];
        for (size_t t = 1; t < taps; t++) {
            const dsg_real *shifted = in + offset[t] + at;
            dsg_real k = weight[t];
            for (size_t i = 0; i < 4; i++)
                for (size_t j = 0; j < 16; j++)
                    sum[i][j] += k * shifted[16 * i + j];
        }
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j < 16; j++)
                out[at + 16 * i + j] = sum[i][j];
    }
    for (size_t j = at; j < n; j++)
        out[j] = weight[0] * in[offset[0] + j];
    for (size_t t = 1; t < taps; t++)
        for (size_t j = at; j < n; j++)
            out[j] += weight[t] * in[offset[t] + j];
}

static void DSG_NAME(sum_row)(dsg_real *restrict out, const dsg_real *restrict in,
                              const DSG_NAME(sums) *sums, size_t i, size_t n)
{
    size_t begin = sums->begin[i];
    DSG_NAME(weighted_sum)
    (out, in, sums->offset + begin, sums->weight + begin, sums->begin[i + 1] - begin,
     n);
}

static void DSG_NAME(resize_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                     const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(resize) *r = (const DSG_NAME(resize) *)op;
    size_t w = op->in.w, entries = r->factor * r->phase;
    dsg_real *row = ws, *phases = row + r->phases;
    for (size_t c = 0; c < op->in.c; c++, x += op->in.h * w)
        for (size_t i = 0; i < op->out.h; i++, y += op->out.w) {
            DSG_NAME(sum_row)(row, x, &r->down, i, w);
            for (size_t j = 0; j < entries; j++)
                phases[j] = row[r->source[j]];
            DSG_NAME(sum_row)(y, phases, &r->across, 0, op->out.w);
        }
}

static void DSG_NAME(resize_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                 const dsg_real *restrict x, const dsg_real *restrict v,
                                 void *ws)
{
    const DSG_NAME(resize) *r = (const DSG_NAME(resize) *)op;
    size_t w = op->in.w, entries = r->factor * r->phase;
    dsg_real *row = ws, *phases = row + r->phases, *image = row + r->image;
    (void)x;
    /* a row of v between zeros */
    memset(row, 0, (op->out.w + 2 * r->reach) * sizeof *row);
    for (size_t c = 0; c < op->in.c; c++) {
        for (size_t i = 0; i < op->out.h; i++, v += op->out.w) {
            memcpy(row + r->reach, v, op->out.w * sizeof *row);
            for (size_t p = 0; p < r->factor; p++) {
                DSG_NAME(sum_row)
                (phases + p * r->phase, row, &r->across_adjoint, p, r->phase);
            }
            dsg_real *wide = image + i * w;
            memset(wide, 0, w * sizeof *wide);
            for (size_t j = 0; j < entries; j++)
                wide[r->source[j]] += phases[j];
        }
        for (size_t i = 0; i < op->in.h; i++, g += w)
            DSG_NAME(sum_row)(g, image, &r->down_adjoint, i, w);
    }
}

/* ---- data step ---- */

static dsg_status DSG_NAME(resize_data_step)(const DSG_NAME(dsg_op) *op,
                                             DSG_NAME(dsg_data_step) **step)
{
    size_t f = ((const DSG_NAME(resize) *)op)->factor;
    double *down = NULL, *across = NULL;
    dsg_status err = DSG_ENOMEM;
    *step = NULL;
    if (op->out.h > DSG_SEPARABLE_MOST || op->out.w > DSG_SEPARABLE_MOST)
        return DSG_OK;
    if (f > 1) { /* factor 1 is the identity */
        down = axis_matrix(op->in.h, f, op->out.h);
        across = axis_matrix(op->in.w, f, op->out.w);
    }
    if (f == 1 || (down && across))
        err = DSG_NAME(dsg_separable_create)(step, op, op->in.c, op->out.h, op->in.h,
                                             op->out.w, op->in.w, down, across);
    dsg_free(across);
    dsg_free(down);
    return err;
}

/* ---- set-up ---- */

static void DSG_NAME(free_sums)(DSG_NAME(sums) *s)
{
    dsg_free(s->begin);
    dsg_free(s->offset);
    dsg_free(s->weight);
}

static void DSG_NAME(resize_destroy)(DSG_NAME(dsg_op) *op)
{
    DSG_NAME(resize) *r = (DSG_NAME(resize) *)op;
    DSG_NAME(free_sums)(&r->down);
    DSG_NAME(free_sums)(&r->down_adjoint);
    DSG_NAME(free_sums)(&r->across);
    DSG_NAME(free_sums)(&r->across_adjoint);
    dsg_free(r->source);
    dsg_free(r);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(resize_class) = {
    .linear = true,
    .forward = DSG_NAME(resize_forward),
    .vjp = DSG_NAME(resize_vjp),
    .data_step = DSG_NAME(resize_data_step),
    .destroy = DSG_NAME(resize_destroy),
};

static bool DSG_NAME(alloc_sums)(DSG_NAME(sums) *s, size_t rows, size_t entries)
{
    s->begin = dsg_calloc(rows + 1, sizeof *s->begin);
    s->offset = dsg_alloc(entries, sizeof *s->offset);
    s->weight = dsg_alloc(entries, sizeof *s->weight);
    return s->begin && s->offset && s->weight;
}

/* Output rows from input rows of w entries, and back. */
static dsg_status DSG_NAME(make_down)(DSG_NAME(resize) *r, const axis *a,
                                      const double *weight, size_t w)
{
    DSG_NAME(sums) *down = &r->down, *up = &r->down_adjoint;
    size_t entries;
    if (!dsg_mul(a->out, a->taps, &entries))
        return DSG_ESHAPE;
    if (!DSG_NAME(alloc_sums)(down, a->out, entries) ||
        !DSG_NAME(alloc_sums)(up, a->n, entries))
        return DSG_ENOMEM;

    size_t at = 0;
    for (size_t o = 0; o < a->out; o++) {
        for (size_t t = 0; t < a->taps; t++, at++) {
            size_t i = mirror(a->first + (ptrdiff_t)(r->factor * o + t), a->n);
            down->offset[at] = i * w;
            down->weight[at] = (dsg_real)weight[t];
            up->begin[i + 1]++;
        }
        down->begin[o + 1] = at;
    }
    /* the same entries by input row, a counting sort: begin[i + 1] is first the size of
     * row i, then its end, then, counted down as the row is filled, its beginning */
    for (size_t i = 0; i < a->n; i++)
        up->begin[i + 1] += up->begin[i];
    for (size_t e = entries; e-- > 0;) {
        size_t place = --up->begin[down->offset[e] / w + 1];
        up->offset[place] = e / a->taps * w;
        up->weight[place] = down->weight[e];
    }
    for (size_t i = 0; i < a->n; i++)
        up->begin[i] = up->begin[i + 1];
    up->begin[a->n] = entries;
    return DSG_OK;
}

/* Phases from a row, output row from phases, and phases from an output row. */
static dsg_status DSG_NAME(make_across)(DSG_NAME(resize) *r, const axis *a,
                                        const double *weight)
{
    size_t f = r->factor, entries;
    r->reach = (a->taps - 1) / f;
    r->phase = a->out + r->reach;
    if (!dsg_mul(f, r->phase, &entries))
        return DSG_ESHAPE;
    r->source = dsg_alloc(entries, sizeof *r->source);
    if (!r->source || !DSG_NAME(alloc_sums)(&r->across, 1, a->taps) ||
        !DSG_NAME(alloc_sums)(&r->across_adjoint, f, a->taps))
        return DSG_ENOMEM;

    for (size_t p = 0; p < f; p++)
        for (size_t j = 0; j < r->phase; j++)
            r->source[p * r->phase + j] =
                mirror(a->first + (ptrdiff_t)(f * j + p), a->n);
    for (size_t t = 0; t < a->taps; t++) {
        r->across.offset[t] = t % f * r->phase + t / f;
        r->across.weight[t] = (dsg_real)weight[t];
    }
    r->across.begin[1] = a->taps;
    size_t at = 0;
    for (size_t p = 0; p < f; p++) {
        for (size_t t = p; t < a->taps; t += f, at++) {
            r->across_adjoint.offset[at] = r->reach - t / f;
            r->across_adjoint.weight[at] = (dsg_real)weight[t];
        }
        r->across_adjoint.begin[p + 1] = at;
    }
    return DSG_OK;
}

/* Workspace: a row (of input, or of output between zeros), its phases, and an image
 * that is enlarged across but not yet down. */
static dsg_status DSG_NAME(size_workspace)(DSG_NAME(resize) *r)
{
    size_t w = r->op.in.w, padded = r->op.out.w + 2 * r->reach, phases, image, bytes;
    size_t row = dsg_align_up((w > padded ? w : padded) * sizeof(dsg_real));
    if (!dsg_mul(r->factor * r->phase, sizeof(dsg_real), &phases) ||
        !dsg_mul(r->op.out.h, w, &image) || !dsg_mul(image, sizeof(dsg_real), &image) ||
        row > PTRDIFF_MAX / 4 || phases > PTRDIFF_MAX / 4 || image > PTRDIFF_MAX / 4)
        return DSG_ESHAPE;
    bytes = row + dsg_align_up(phases);
    r->phases = row / sizeof(dsg_real);
    r->image = bytes / sizeof(dsg_real);
    r->op.workspace = bytes + image;
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_resize_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                       size_t factor)
{
    if (factor == 0)
        return DSG_EVALUE;
    size_t longest = shape.h > shape.w ? shape.h : shape.w;
    if (!dsg_shape_valid(shape, sizeof(dsg_real)) ||
        (factor - 1) / MOST_STRETCH >= longest || factor > PTRDIFF_MAX / 64)
        return DSG_ESHAPE;

    dsg_status err = DSG_ENOMEM;
    DSG_NAME(resize) *r = dsg_calloc(1, sizeof *r);
    double *weight = dsg_alloc(taps_bound(factor), sizeof *weight);
    if (!r || !weight)
        goto done;
    r->factor = factor;
    r->op.class = &DSG_NAME(resize_class);
    r->op.in = shape;

    axis down = make_axis(weight, shape.h, factor);
    err = DSG_NAME(make_down)(r, &down, weight, shape.w);
    if (err != DSG_OK)
        goto done;
    axis across = make_axis(weight, shape.w, factor);
    err = DSG_NAME(make_across)(r, &across, weight);
    if (err != DSG_OK)
        goto done;
    r->op.out = (dsg_shape){.c = shape.c, .h = down.out, .w = across.out};
    err = DSG_NAME(size_workspace)(r);
    if (err != DSG_OK)
        goto done;
    *op = &r->op;
    r = NULL;
done:
    dsg_free(weight);
    if (r)
        DSG_NAME(resize_destroy)(&r->op);
    return err;
}
