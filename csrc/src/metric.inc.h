/* PSNR, NMSE and SSIM for one precision. */

typedef struct DSG_NAME(pair) {
    double *out;
    const dsg_real *x, *ref;
    dsg_shape shape;
    double range, floor;
    ssim_window window;
} DSG_NAME(pair);

/* sums[0] = sum (x - ref)^2, sums[1] = sum ref^2.  Sixteen lanes keep it vectorised
 * and its rounding independent of everything but n. */
DSG_CLONES static void DSG_NAME(sum_squares)(double *restrict sums,
                                             const dsg_real *restrict x,
                                             const dsg_real *restrict ref, size_t n)
{
    double error[16] = {0}, norm[16] = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++) {
            double r = ref[i + l], d = (double)x[i + l] - r;
            error[l] += d * d;
            norm[l] += r * r;
        }
    for (size_t l = 0; i < n; i++, l++) {
        double r = ref[i], d = (double)x[i] - r;
        error[l] += d * d;
        norm[l] += r * r;
    }
    sums[0] = sums[1] = 0.0;
    for (size_t l = 0; l < 16; l++) {
        sums[0] += error[l];
        sums[1] += norm[l];
    }
}

static dsg_status DSG_NAME(psnr_image)(void *arg, size_t i, void *scratch)
{
    (void)scratch;
    const DSG_NAME(pair) *p = arg;
    size_t n = dsg_shape_size(p->shape);
    double sums[2];
    DSG_NAME(sum_squares)(sums, p->x + i * n, p->ref + i * n, n);
    double mse = sums[0] / (double)n;
    p->out[i] = 10.0 * log10(p->range * p->range / (mse + p->floor));
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_psnr)(double *out, const dsg_real *x, const dsg_real *ref,
                              size_t b, dsg_shape shape, double range, double floor)
{
    if (!dsg_shape_valid(shape, sizeof *x))
        return DSG_ESHAPE;
    if (!(range > 0.0 && isfinite(range) && floor >= 0.0 && isfinite(floor)))
        return DSG_EVALUE;
    DSG_NAME(pair)
    p = {
        .out = out, .x = x, .ref = ref, .shape = shape, .range = range, .floor = floor};
    return dsg_parallel_for(b, 0, DSG_NAME(psnr_image), &p);
}

static dsg_status DSG_NAME(nmse_image)(void *arg, size_t i, void *scratch)
{
    (void)scratch;
    const DSG_NAME(pair) *p = arg;
    size_t n = p->shape.h * p->shape.w;
    double total = 0.0;
    for (size_t c = 0; c < p->shape.c; c++) {
        size_t at = (i * p->shape.c + c) * n;
        double sums[2];
        DSG_NAME(sum_squares)(sums, p->x + at, p->ref + at, n);
        total += sums[0] / (double)n / (sums[1] / (double)n + 1e-6);
    }
    p->out[i] = total / (double)p->shape.c;
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_nmse)(double *out, const dsg_real *x, const dsg_real *ref,
                              size_t b, dsg_shape shape)
{
    if (!dsg_shape_valid(shape, sizeof *x))
        return DSG_ESHAPE;
    DSG_NAME(pair) p = {.out = out, .x = x, .ref = ref, .shape = shape};
    return dsg_parallel_for(b, 0, DSG_NAME(nmse_image), &p);
}

/* m[0..3][j] = x, y, x^2 + y^2, x y of n pixels. */
DSG_CLONES static void DSG_NAME(moments)(double (*restrict m)[INPUT],
                                         const dsg_real *restrict x,
                                         const dsg_real *restrict y, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        double u = x[j], v = y[j];
        m[0][j] = u;
        m[1][j] = v;
        m[2][j] = u * u + v * v;
        m[3][j] = u * v;
    }
}

/* Sum of the index over n output columns of one channel; x and y are at the first of
 * the n + taps - 1 input columns. */
static double DSG_NAME(ssim_strip)(ssim_scratch *s, const dsg_real *x,
                                   const dsg_real *y, size_t h, size_t w, size_t n,
                                   const ssim_window *win, double c1, double c2)
{
    double lane[STRIP] = {0};
    size_t taps = win->taps, held = 0;
    for (size_t i = 0; i < h; i++) {
        if (held == WINDOW) {
            memmove(s->window, s->window + WINDOW - (taps - 1),
                    (taps - 1) * sizeof s->window[0]);
            held = taps - 1;
        }
        DSG_NAME(moments)(s->input, x + i * w, y + i * w, n + taps - 1);
        for (size_t k = 0; k < MOMENTS; k++)
            filter(s->window[held][k], s->input[k], 1, n, win);
        held++;
        if (held >= taps) {
            filter(s->output[0], s->window[held - taps][0], MOMENTS * STRIP,
                   MOMENTS * STRIP, win);
            add_ssim(lane, s->output, n, c1, c2, win->unbias);
        }
    }
    double sum = 0.0;
    for (size_t j = 0; j < STRIP; j++)
        sum += lane[j];
    return sum;
}

static dsg_status DSG_NAME(ssim_image)(void *arg, size_t i, void *scratch)
{
    const DSG_NAME(pair) *p = arg;
    size_t c = p->shape.c, h = p->shape.h, w = p->shape.w, margin = p->window.taps - 1;
    double c1 = 0.01 * p->range, c2 = 0.03 * p->range, sum = 0.0;
    c1 *= c1;
    c2 *= c2;

    /* A last strip narrower than STRIP leaves columns of the window as they are; they
     * are filtered too, so they must be numbers. */
    memset(scratch, 0, sizeof(ssim_scratch));
    for (size_t k = 0; k < c; k++) {
        const dsg_real *x = p->x + (i * c + k) * h * w,
                       *y = p->ref + (i * c + k) * h * w;
        for (size_t j = 0; j < w - margin; j += STRIP) {
            size_t n = w - margin - j < STRIP ? w - margin - j : STRIP;
            sum += DSG_NAME(ssim_strip)(scratch, x + j, y + j, h, w, n, &p->window, c1,
                                        c2);
        }
    }
    p->out[i] = sum / ((double)c * (double)(h - margin) * (double)(w - margin));
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_ssim)(double *out, const dsg_real *x, const dsg_real *ref,
                              size_t b, dsg_shape shape, double range,
                              dsg_ssim_window window)
{
    if (!dsg_shape_valid(shape, sizeof *x))
        return DSG_ESHAPE;
    if (!(range > 0.0 && isfinite(range)) ||
        (window != DSG_SSIM_GAUSSIAN && window != DSG_SSIM_UNIFORM))
        return DSG_EVALUE;
    DSG_NAME(pair) p = {.out = out, .x = x, .ref = ref, .shape = shape, .range = range};
    make_window(&p.window, window);
    if (shape.h < p.window.taps || shape.w < p.window.taps)
        return DSG_ESHAPE;
    return dsg_parallel_for(b, sizeof(ssim_scratch), DSG_NAME(ssim_image), &p);
}
