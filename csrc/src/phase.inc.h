/* Phase retrieval for one precision.
 *
 * The spectrum of a real image is known from its rows k = 0..H/2 (H, W: the padded
 * sides).  Columns are transformed first, only the w that are not zero, two at a time
 * as the real and the imaginary part of one line; rows come second, so that a row's
 * transform, what happens to its magnitudes and the transform back are done while it
 * lies in L1.  The image stands in the corner of the padding: elsewhere it would have
 * other phases, and the way back undoes them.
 *
 * Row k of the measurement belongs to spectrum rows k and H - k alike, one read
 * forwards and one backwards: |z(-k, -l)| = |z(k, l)|. */

typedef struct DSG_NAME(phase) {
    DSG_NAME(dsg_op) op;
    dsg_real scale, shift;
    double norm; /* of the orthonormal transform: 1 / sqrt(H W) */
    const DSG_NAME(dsg_fft_line) *down, *across;
    size_t ld_down, ld_across; /* complex numbers from one line to the next */
} DSG_NAME(phase);

/* The workspace, cut up. */
typedef struct DSG_NAME(buffers) {
    dsg_real *spectrum[2];       /* H / 2 + 1 rows */
    dsg_real *columns, *spectra; /* PAIRS lines of H, before and after transforming */
    dsg_real *row[2];            /* lines of W */
    dsg_real *magnitude, *p, *q; /* W reals each, with room for 2 W */
} DSG_NAME(buffers);

static DSG_NAME(buffers) DSG_NAME(cut)(const DSG_NAME(phase) *f, void *ws)
{
    size_t spectrum = 2 * (f->op.out.h / 2 + 1) * f->ld_across;
    size_t block = 2 * PAIRS * f->ld_down, row = 2 * f->ld_across;
    DSG_NAME(buffers) b;
    dsg_real *at = ws;
    b.spectrum[0] = at, at += spectrum;
    b.spectrum[1] = at, at += spectrum;
    b.columns = at, at += block;
    b.spectra = at, at += block;
    b.row[0] = at, at += row;
    b.row[1] = at, at += row;
    b.magnitude = at, at += row;
    b.p = at, at += row;
    b.q = at;
    return b;
}

/* ---- columns ---- */

/* n columns of x (h, w), n <= 2 PAIRS, as pairs: line b of `columns` becomes
 * scale x + shift of column 2 b and, imaginary, of column 2 b + 1; zero below. */
DSG_CLONES static void DSG_NAME(gather)(dsg_real *restrict columns, size_t ld,
                                        const dsg_real *restrict x, size_t h, size_t w,
                                        size_t n, size_t height, dsg_real scale,
                                        dsg_real shift)
{
    dsg_real u[2 * PAIRS] = {0};
    for (size_t i = 0; i < h; i++) {
        if (n == 2 * PAIRS) {
            for (size_t j = 0; j < 2 * PAIRS; j++)
                u[j] = scale * x[i * w + j] + shift;
        } else {
            for (size_t j = 0; j < n; j++)
                u[j] = scale * x[i * w + j] + shift;
        }
        for (size_t b = 0; b < PAIRS; b++) {
            columns[2 * (b * ld + i)] = u[2 * b];
            columns[2 * (b * ld + i) + 1] = u[2 * b + 1];
        }
    }
    for (size_t b = 0; b < PAIRS; b++)
        memset(columns + 2 * (b * ld + h), 0, 2 * (height - h) * sizeof *columns);
}

/* Rows 0..height/2 of the spectra of both columns of every pair, times factor.  For
 * Z = X + i Y with x, y real: 2 X(k) = Z(k) + conj Z(-k), 2 i Y(k) = Z(k) - conj Z(-k).
 */
DSG_CLONES static void DSG_NAME(split)(dsg_real *restrict spectrum, size_t ld_out,
                                       const dsg_real *restrict spectra, size_t ld,
                                       size_t height, size_t pairs, dsg_real factor)
{
    dsg_real half = factor / 2;
    for (size_t k = 0; k <= height / 2; k++) {
        size_t back = k ? height - k : 0;
        for (size_t b = 0; b < pairs; b++) {
            const dsg_real *z = spectra + 2 * (b * ld + k);
            const dsg_real *m = spectra + 2 * (b * ld + back);
            dsg_real *out = spectrum + 2 * (k * ld_out + 2 * b);
            out[0] = half * (z[0] + m[0]);
            out[1] = half * (z[1] - m[1]);
            out[2] = half * (z[1] + m[1]);
            out[3] = half * (m[0] - z[0]);
        }
    }
}

/* The way back: Z(k) = X(k) + i Y(k), Z(-k) = conj X(k) + i conj Y(k).  A row that is
 * its own mirror image is real but for rounding, and is made so. */
DSG_CLONES static void DSG_NAME(join)(dsg_real *restrict spectra, size_t ld,
                                      const dsg_real *restrict spectrum, size_t ld_in,
                                      size_t height, size_t pairs)
{
    for (size_t k = 0; k <= height / 2; k++) {
        size_t back = k ? height - k : 0;
        for (size_t b = 0; b < pairs; b++) {
            const dsg_real *in = spectrum + 2 * (k * ld_in + 2 * b);
            dsg_real *z = spectra + 2 * (b * ld + k);
            dsg_real *m = spectra + 2 * (b * ld + back);
            z[0] = in[0] - in[3];
            z[1] = in[1] + in[2];
            m[0] = in[0] + in[3];
            m[1] = in[2] - in[1];
        }
        if (back == k)
            for (size_t b = 0; b < pairs; b++) {
                const dsg_real *in = spectrum + 2 * (k * ld_in + 2 * b);
                spectra[2 * (b * ld + k)] = in[0];
                spectra[2 * (b * ld + k) + 1] = in[2];
            }
    }
}

/* n columns of g from the pairs, times factor. */
DSG_CLONES static void DSG_NAME(scatter)(dsg_real *restrict g, size_t h, size_t w,
                                         const dsg_real *restrict columns, size_t ld,
                                         size_t n, dsg_real factor)
{
    dsg_real u[2 * PAIRS];
    for (size_t i = 0; i < h; i++) {
        for (size_t b = 0; b < PAIRS; b++) {
            u[2 * b] = columns[2 * (b * ld + i)];
            u[2 * b + 1] = columns[2 * (b * ld + i) + 1];
        }
        if (n == 2 * PAIRS) {
            for (size_t j = 0; j < 2 * PAIRS; j++)
                g[i * w + j] = factor * u[j];
        } else {
            for (size_t j = 0; j < n; j++)
                g[i * w + j] = factor * u[j];
        }
    }
}

/* The columns of one channel, transformed; in the rows still to be. */
static void DSG_NAME(analyse)(const DSG_NAME(phase) *f, dsg_real *restrict spectrum,
                              const dsg_real *restrict x, dsg_real shift,
                              const DSG_NAME(buffers) *t)
{
    size_t h = f->op.in.h, w = f->op.in.w, height = f->op.out.h, width = f->op.out.w;
    size_t line = 2 * f->ld_down, ld = f->ld_across;
    for (size_t j = 0; j < w; j += 2 * PAIRS) {
        size_t n = w - j < 2 * PAIRS ? w - j : 2 * PAIRS, pairs = (n + 1) / 2;
        DSG_NAME(gather)
        (t->columns, f->ld_down, x + j, h, w, n, height, f->scale, shift);
        for (size_t b = 0; b < pairs; b++) {
            DSG_NAME(dsg_fft_line_forward)
            (f->down, t->spectra + b * line, t->columns + b * line);
        }
        DSG_NAME(split)
        (spectrum + 2 * j, ld, t->spectra, f->ld_down, height, pairs,
         (dsg_real)f->norm);
    }
    for (size_t k = 0; k <= height / 2; k++)
        memset(spectrum + 2 * (k * ld + w), 0, 2 * (width - w) * sizeof *spectrum);
}

/* One channel from its spectrum, the rows being transformed back already. */
static void DSG_NAME(synthesise)(const DSG_NAME(phase) *f, dsg_real *restrict g,
                                 const dsg_real *restrict spectrum,
                                 const DSG_NAME(buffers) *t)
{
    size_t h = f->op.in.h, w = f->op.in.w, line = 2 * f->ld_down;
    dsg_real factor = (dsg_real)(f->scale * f->norm);
    for (size_t j = 0; j < w; j += 2 * PAIRS) {
        size_t n = w - j < 2 * PAIRS ? w - j : 2 * PAIRS, pairs = (n + 1) / 2;
        DSG_NAME(join)
        (t->spectra, f->ld_down, spectrum + 2 * j, f->ld_across, f->op.out.h, pairs);
        for (size_t b = 0; b < pairs; b++) {
            DSG_NAME(dsg_fft_line_inverse)
            (f->down, t->columns + b * line, t->spectra + b * line);
        }
        DSG_NAME(scatter)(g + j, h, w, t->columns, f->ld_down, n, factor);
    }
}

/* ---- rows of the measurement ---- */

DSG_CLONES static void DSG_NAME(reverse)(dsg_real *restrict out,
                                         const dsg_real *restrict in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[n - 1 - i] = in[i];
}

/* out[l] = in[shifted(-l)], and out[shifted(-l)] = in[l]: the same. */
static void DSG_NAME(mirror)(dsg_real *restrict out, const dsg_real *restrict in,
                             size_t n)
{
    size_t s = n / 2 + 1;
    DSG_NAME(reverse)(out, in, s);
    DSG_NAME(reverse)(out + s, in + s, n - s);
}

/* Both rows of v that belong to row k, p read forwards and q backwards.  Returns
 * whether they are two. */
static bool DSG_NAME(get_rows)(const DSG_NAME(phase) *f, dsg_real *restrict p,
                               dsg_real *restrict q, const dsg_real *restrict v,
                               size_t k)
{
    size_t height = f->op.out.h, n = f->op.out.w, s = n / 2;
    size_t back = k ? height - k : 0;
    const dsg_real *row = v + shifted(k, height) * n;
    memcpy(p, row + s, (n - s) * sizeof *p);
    memcpy(p + n - s, row, s * sizeof *p);
    DSG_NAME(mirror)(q, v + shifted(back, height) * n, n);
    return back != k;
}

/* The way back, for a row that is the same forwards and backwards. */
static void DSG_NAME(put_rows)(const DSG_NAME(phase) *f, dsg_real *restrict y,
                               const dsg_real *restrict p, size_t k)
{
    size_t height = f->op.out.h, n = f->op.out.w, s = n / 2;
    size_t back = k ? height - k : 0;
    dsg_real *row = y + shifted(k, height) * n;
    memcpy(row + s, p, (n - s) * sizeof *p);
    memcpy(row, p + n - s, s * sizeof *p);
    if (back != k)
        DSG_NAME(mirror)(y + shifted(back, height) * n, p, n);
}

/* ---- magnitudes and phases of one row; n complex numbers ---- */

/* m = |z| */
DSG_CLONES static void DSG_NAME(magnitude)(dsg_real *restrict m,
                                           const dsg_real *restrict z, size_t n)
{
    for (size_t l = 0; l < n; l++)
        m[l] = SQRT(z[2 * l] * z[2 * l] + z[2 * l + 1] * z[2 * l + 1]);
}

/* m = 1 / m.  A magnitude whose square is not a normal number has lost its direction;
 * it counts as 0, and so does its inverse. */
DSG_CLONES static void DSG_NAME(invert)(dsg_real *restrict m, size_t n)
{
    const dsg_real least = SQRT(SMALLEST);
    for (size_t l = 0; l < n; l++)
        m[l] = m[l] > least ? 1 / m[l] : 0;
}

/* p = (p + q) / 2: all of v that meets z is its even part. */
DSG_CLONES static void DSG_NAME(average)(dsg_real *restrict p,
                                         const dsg_real *restrict q, size_t n)
{
    for (size_t l = 0; l < n; l++)
        p[l] = (p[l] + q[l]) / 2;
}

/* p = m - p and q = m - q averaged; returns ||m - p||^2 + second ||m - q||^2. */
DSG_CLONES static double DSG_NAME(residual)(dsg_real *restrict p,
                                            const dsg_real *restrict q,
                                            const dsg_real *restrict m, size_t n,
                                            double second)
{
    double lane[16] = {0}, sum = 0.0;
    size_t l = 0;
    for (; l + 16 <= n; l += 16)
        for (size_t i = 0; i < 16; i++) {
            dsg_real a = m[l + i] - p[l + i], b = m[l + i] - q[l + i];
            lane[i] += (double)a * a + second * ((double)b * b);
            p[l + i] = (a + b) / 2;
        }
    for (size_t i = 0; l < n; l++, i++) {
        dsg_real a = m[l] - p[l], b = m[l] - q[l];
        lane[i] += (double)a * a + second * ((double)b * b);
        p[l] = (a + b) / 2;
    }
    for (size_t i = 0; i < 16; i++)
        sum += lane[i];
    return sum;
}

/* z = v z / |z|, given 1 / |z| */
DSG_CLONES static void DSG_NAME(replace_magnitude)(dsg_real *restrict z,
                                                   const dsg_real *restrict v,
                                                   const dsg_real *restrict inverse,
                                                   size_t n)
{
    for (size_t l = 0; l < n; l++) {
        dsg_real factor = v[l] * inverse[l];
        z[2 * l] *= factor;
        z[2 * l + 1] *= factor;
    }
}

/* t = Re(conj(z) a) / |z| */
DSG_CLONES static void DSG_NAME(radial_part)(dsg_real *restrict t,
                                             const dsg_real *restrict z,
                                             const dsg_real *restrict a,
                                             const dsg_real *restrict inverse, size_t n)
{
    for (size_t l = 0; l < n; l++) {
        dsg_real re = z[2 * l] * inverse[l], im = z[2 * l + 1] * inverse[l];
        t[l] = re * a[2 * l] + im * a[2 * l + 1];
    }
}

/* z = (v / |z|) (a - u Re(conj(u) a)), u = z / |z|: the part of a across u, that is
 * i u Im(conj(u) a), in which nothing cancels. */
DSG_CLONES static void DSG_NAME(tangential_part)(dsg_real *restrict z,
                                                 const dsg_real *restrict a,
                                                 const dsg_real *restrict v,
                                                 const dsg_real *restrict inverse,
                                                 size_t n)
{
    for (size_t l = 0; l < n; l++) {
        dsg_real re = z[2 * l] * inverse[l], im = z[2 * l + 1] * inverse[l];
        dsg_real across = re * a[2 * l + 1] - im * a[2 * l];
        dsg_real factor = v[l] * inverse[l] * across;
        z[2 * l] = -factor * im;
        z[2 * l + 1] = factor * re;
    }
}

/* ---- the table ---- */

/* Row k of a spectrum that analyse has made. */
static dsg_real *DSG_NAME(spectrum_row)(const DSG_NAME(phase) *f, dsg_real *spectrum,
                                        size_t k)
{
    return spectrum + 2 * k * f->ld_across;
}

static void DSG_NAME(phase_forward)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                    const dsg_real *restrict x, void *ws)
{
    const DSG_NAME(phase) *f = (const DSG_NAME(phase) *)op;
    DSG_NAME(buffers) t = DSG_NAME(cut)(f, ws);
    size_t h = op->in.h, w = op->in.w, height = op->out.h, width = op->out.w;
    for (size_t c = 0; c < op->in.c; c++, x += h * w, y += height * width) {
        DSG_NAME(analyse)(f, t.spectrum[0], x, f->shift, &t);
        for (size_t k = 0; k <= height / 2; k++) {
            dsg_real *z = t.row[0];
            DSG_NAME(dsg_fft_line_forward)
            (f->across, z, DSG_NAME(spectrum_row)(f, t.spectrum[0], k));
            DSG_NAME(magnitude)(t.magnitude, z, width);
            DSG_NAME(put_rows)(f, y, t.magnitude, k);
        }
    }
}

/* g = J(x)^T v or, with `residual`, J(x)^T (A(x) - v), whose squared norm it returns
 * then. */
static double DSG_NAME(pull_back)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                  const dsg_real *restrict x,
                                  const dsg_real *restrict v, bool residual, void *ws)
{
    const DSG_NAME(phase) *f = (const DSG_NAME(phase) *)op;
    DSG_NAME(buffers) t = DSG_NAME(cut)(f, ws);
    size_t h = op->in.h, w = op->in.w, height = op->out.h, width = op->out.w;
    double sqnorm = 0.0;
    for (size_t c = 0; c < op->in.c; c++) {
        DSG_NAME(analyse)(f, t.spectrum[0], x, f->shift, &t);
        for (size_t k = 0; k <= height / 2; k++) {
            dsg_real *z = t.row[0], *row = DSG_NAME(spectrum_row)(f, t.spectrum[0], k);
            DSG_NAME(dsg_fft_line_forward)(f->across, z, row);
            DSG_NAME(magnitude)(t.magnitude, z, width);
            bool two = DSG_NAME(get_rows)(f, t.p, t.q, v, k);
            if (residual)
                sqnorm += DSG_NAME(residual)(t.p, t.q, t.magnitude, width, two);
            else
                DSG_NAME(average)(t.p, t.q, width);
            DSG_NAME(invert)(t.magnitude, width);
            DSG_NAME(replace_magnitude)(z, t.p, t.magnitude, width);
            DSG_NAME(dsg_fft_line_inverse)(f->across, row, z);
        }
        DSG_NAME(synthesise)(f, g, t.spectrum[0], &t);
        x += h * w;
        g += h * w;
        v += height * width;
    }
    return sqnorm;
}

static void DSG_NAME(phase_vjp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict g,
                                const dsg_real *restrict x, const dsg_real *restrict v,
                                void *ws)
{
    DSG_NAME(pull_back)(op, g, x, v, false, ws);
}

static double DSG_NAME(phase_residual_gradient)(const DSG_NAME(dsg_op) *op,
                                                dsg_real *restrict g,
                                                const dsg_real *restrict x,
                                                const dsg_real *restrict y, void *ws)
{
    return DSG_NAME(pull_back)(op, g, x, y, true, ws);
}

/* Rows z of F u and a of F (scale w), and 1 / |z|. */
static void DSG_NAME(transform_both)(const DSG_NAME(phase) *f,
                                     const DSG_NAME(buffers) *t, size_t k)
{
    for (size_t i = 0; i < 2; i++) {
        DSG_NAME(dsg_fft_line_forward)
        (f->across, t->row[i], DSG_NAME(spectrum_row)(f, t->spectrum[i], k));
    }
    DSG_NAME(magnitude)(t->magnitude, t->row[0], f->op.out.w);
    DSG_NAME(invert)(t->magnitude, f->op.out.w);
}

static void DSG_NAME(phase_jvp)(const DSG_NAME(dsg_op) *op, dsg_real *restrict y,
                                const dsg_real *restrict x, const dsg_real *restrict w,
                                void *ws)
{
    const DSG_NAME(phase) *f = (const DSG_NAME(phase) *)op;
    DSG_NAME(buffers) t = DSG_NAME(cut)(f, ws);
    size_t in = op->in.h * op->in.w, height = op->out.h, width = op->out.w;
    for (size_t c = 0; c < op->in.c; c++, x += in, w += in, y += height * width) {
        DSG_NAME(analyse)(f, t.spectrum[0], x, f->shift, &t);
        DSG_NAME(analyse)(f, t.spectrum[1], w, 0, &t);
        for (size_t k = 0; k <= height / 2; k++) {
            DSG_NAME(transform_both)(f, &t, k);
            DSG_NAME(radial_part)(t.p, t.row[0], t.row[1], t.magnitude, width);
            DSG_NAME(put_rows)(f, y, t.p, k);
        }
    }
}

static void DSG_NAME(phase_curvature)(const DSG_NAME(dsg_op) *op, dsg_real *restrict h,
                                      const dsg_real *restrict x,
                                      const dsg_real *restrict v,
                                      const dsg_real *restrict w, void *ws)
{
    const DSG_NAME(phase) *f = (const DSG_NAME(phase) *)op;
    DSG_NAME(buffers) t = DSG_NAME(cut)(f, ws);
    size_t in = op->in.h * op->in.w, height = op->out.h, width = op->out.w;
    for (size_t c = 0; c < op->in.c; c++) {
        DSG_NAME(analyse)(f, t.spectrum[0], x, f->shift, &t);
        DSG_NAME(analyse)(f, t.spectrum[1], w, 0, &t);
        for (size_t k = 0; k <= height / 2; k++) {
            DSG_NAME(transform_both)(f, &t, k);
            DSG_NAME(get_rows)(f, t.p, t.q, v, k);
            DSG_NAME(average)(t.p, t.q, width);
            DSG_NAME(tangential_part)(t.row[0], t.row[1], t.p, t.magnitude, width);
            DSG_NAME(dsg_fft_line_inverse)
            (f->across, DSG_NAME(spectrum_row)(f, t.spectrum[0], k), t.row[0]);
        }
        DSG_NAME(synthesise)(f, h, t.spectrum[0], &t);
        x += in;
        w += in;
        h += in;
        v += height * width;
    }
}

static void DSG_NAME(phase_destroy)(DSG_NAME(dsg_op) *op)
{
    dsg_free(op);
}

static const DSG_NAME(dsg_op_class) DSG_NAME(phase_class) = {
    .linear = false,
    .forward = DSG_NAME(phase_forward),
    .vjp = DSG_NAME(phase_vjp),
    .residual_gradient = DSG_NAME(phase_residual_gradient),
    .jvp = DSG_NAME(phase_jvp),
    .curvature = DSG_NAME(phase_curvature),
    .destroy = DSG_NAME(phase_destroy),
};

/* What `cut` hands out. */
static bool DSG_NAME(size_workspace)(DSG_NAME(phase) *f)
{
    size_t rows = f->op.out.h / 2 + 1, spectra, blocks, reals;
    if (!dsg_mul(4 * rows, f->ld_across, &spectra) ||
        !dsg_mul(4 * PAIRS, f->ld_down, &blocks) || spectra > SIZE_MAX / 64 ||
        blocks > SIZE_MAX / 64)
        return false;
    reals = spectra + blocks + 10 * f->ld_across;
    f->op.workspace = reals * sizeof(dsg_real);
    return true;
}

dsg_status DSG_NAME(dsg_phase_create)(DSG_NAME(dsg_op) **op, dsg_shape shape,
                                      size_t pad, double scale, double shift)
{
    if (!dsg_shape_valid(shape, sizeof(dsg_real)) || pad > SIZE_MAX / 64)
        return DSG_ESHAPE;
    dsg_shape out = {.c = shape.c, .h = shape.h + 2 * pad, .w = shape.w + 2 * pad};
    if (!dsg_shape_valid(out, sizeof(dsg_real)))
        return DSG_ESHAPE;
    if (!isfinite((dsg_real)scale) || !isfinite((dsg_real)shift))
        return DSG_EVALUE;

    DSG_NAME(phase) *f = dsg_calloc(1, sizeof *f);
    if (!f)
        return DSG_ENOMEM;
    f->op.class = &DSG_NAME(phase_class);
    f->op.in = shape;
    f->op.out = out;
    f->scale = (dsg_real)scale;
    f->shift = (dsg_real)shift;
    f->norm = 1.0 / sqrt((double)out.h * (double)out.w);
    f->ld_down = row_stride(out.h);
    f->ld_across = row_stride(out.w);
    dsg_status err = DSG_NAME(size_workspace)(f) ? DSG_OK : DSG_ESHAPE;
    if (err == DSG_OK)
        err = DSG_NAME(dsg_fft_line_get)(&f->down, out.h);
    if (err == DSG_OK)
        err = DSG_NAME(dsg_fft_line_get)(&f->across, out.w);
    if (err != DSG_OK) {
        dsg_free(f);
        return err;
    }
    *op = &f->op;
    return DSG_OK;
}
