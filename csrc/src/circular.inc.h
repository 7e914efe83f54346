/* The circular data step for one precision.  Filters work in double: |B|^2 of a float
 * may be out of a float's range, and rho is a double. */

typedef struct DSG_NAME(circular) {
    DSG_NAME(dsg_data_step) step;
    const DSG_NAME(dsg_fft) *plan;
    size_t h, w;
    size_t bins;              /* complex numbers of a spectrum */
    size_t plane_ld, bins_ld; /* elements from one buffer to the next */
    dsg_real *eigenvalues;    /* B, bins complex numbers */
} DSG_NAME(circular);

/* v <- (v + conj(B) (y - B v) / (|B|^2 + rho)) / n, which is the prox written so that
 * v comes through as it is where B is 0. */
DSG_CLONES static void DSG_NAME(prox_filter)(dsg_real *restrict v,
                                             const dsg_real *restrict y,
                                             const dsg_real *restrict eigenvalues,
                                             size_t bins, double rho, double n)
{
    for (size_t i = 0; i < bins; i++) {
        double br = eigenvalues[2 * i], bi = eigenvalues[2 * i + 1];
        double vr = v[2 * i], vi = v[2 * i + 1];
        double rr = y[2 * i] - (br * vr - bi * vi);
        double ri = y[2 * i + 1] - (br * vi + bi * vr);
        double weight = 1.0 / (br * br + bi * bi + rho);
        v[2 * i] = (dsg_real)((vr + weight * (br * rr + bi * ri)) / n);
        v[2 * i + 1] = (dsg_real)((vi + weight * (br * ri - bi * rr)) / n);
    }
}

/* y <- y / (B n), 0 where |B| <= least. */
DSG_CLONES static void DSG_NAME(pinv_filter)(dsg_real *restrict y,
                                             const dsg_real *restrict eigenvalues,
                                             size_t bins, double least, double n)
{
    for (size_t i = 0; i < bins; i++) {
        double br = eigenvalues[2 * i], bi = eigenvalues[2 * i + 1];
        double yr = y[2 * i], yi = y[2 * i + 1];
        double square = br * br + bi * bi;
        double weight = square > least * least ? 1.0 / (square * n) : 0.0;
        y[2 * i] = (dsg_real)(weight * (br * yr + bi * yi));
        y[2 * i + 1] = (dsg_real)(weight * (br * yi - bi * yr));
    }
}

/* Through an aligned copy: a channel of the caller's need not be aligned. */
static void DSG_NAME(transform)(const DSG_NAME(circular) *s, dsg_real *restrict out,
                                const dsg_real *restrict x, dsg_real *restrict plane)
{
    memcpy(plane, x, s->h * s->w * sizeof *x);
    DSG_NAME(dsg_fft_forward)(s->plan, out, plane);
}

static void DSG_NAME(transform_back)(const DSG_NAME(circular) *s, dsg_real *restrict x,
                                     dsg_real *restrict in, dsg_real *restrict plane)
{
    DSG_NAME(dsg_fft_inverse)(s->plan, plane, in);
    memcpy(x, plane, s->h * s->w * sizeof *x);
}

static void DSG_NAME(circular_prox)(const DSG_NAME(dsg_data_step) *step,
                                    dsg_real *restrict x, const dsg_real *restrict v,
                                    const dsg_real *restrict y, double rho, void *ws)
{
    const DSG_NAME(circular) *s = (const DSG_NAME(circular) *)step;
    size_t n = s->h * s->w;
    dsg_real *plane = ws, *fv = plane + s->plane_ld, *fy = fv + s->bins_ld;
    for (size_t c = 0; c < step->op->in.c; c++) {
        DSG_NAME(transform)(s, fv, v + c * n, plane);
        DSG_NAME(transform)(s, fy, y + c * n, plane);
        DSG_NAME(prox_filter)(fv, fy, s->eigenvalues, s->bins, rho, (double)n);
        DSG_NAME(transform_back)(s, x + c * n, fv, plane);
    }
}

static void DSG_NAME(circular_pinv)(const DSG_NAME(dsg_data_step) *step,
                                    dsg_real *restrict x, const dsg_real *restrict y,
                                    double cutoff, void *ws)
{
    const DSG_NAME(circular) *s = (const DSG_NAME(circular) *)step;
    size_t n = s->h * s->w;
    dsg_real *plane = ws, *fy = plane + s->plane_ld;
    for (size_t c = 0; c < step->op->in.c; c++) {
        DSG_NAME(transform)(s, fy, y + c * n, plane);
        DSG_NAME(pinv_filter)
        (fy, s->eigenvalues, s->bins, cutoff * step->norm, (double)n);
        DSG_NAME(transform_back)(s, x + c * n, fy, plane);
    }
}

static void DSG_NAME(circular_destroy)(DSG_NAME(dsg_data_step) *step)
{
    DSG_NAME(circular) *s = (DSG_NAME(circular) *)step;
    dsg_free(s->eigenvalues);
    dsg_free(s);
}

static const DSG_NAME(dsg_data_step_class) DSG_NAME(circular_class) = {
    .prox = DSG_NAME(circular_prox),
    .pinv = DSG_NAME(circular_pinv),
    .destroy = DSG_NAME(circular_destroy),
};

/* Fills in s->eigenvalues and the norm; s->plan and the sizes are set. */
static dsg_status DSG_NAME(find_eigenvalues)(DSG_NAME(circular) *s)
{
    const DSG_NAME(dsg_op) *op = s->step.op;
    size_t n = dsg_shape_size(op->in);
    dsg_status err = DSG_ENOMEM;
    dsg_real *answer = NULL;
    void *ws = NULL;
    dsg_real *pixel = dsg_calloc(n, sizeof *pixel);
    if (!pixel)
        goto done;
    answer = dsg_alloc(n, sizeof *answer);
    if (!answer)
        goto done;
    ws = dsg_alloc(op->workspace, 1);
    if (!ws)
        goto done;

    pixel[0] = 1;
    DSG_NAME(dsg_op_forward)(op, answer, pixel, ws);
    DSG_NAME(dsg_fft_forward)(s->plan, s->eigenvalues, answer);
    double largest = 0.0;
    for (size_t i = 0; i < s->bins; i++) {
        double modulus = hypot(s->eigenvalues[2 * i], s->eigenvalues[2 * i + 1]);
        largest = modulus > largest ? modulus : largest;
    }
    s->step.norm = largest;
    err = DSG_OK;
done:
    dsg_free(ws);
    dsg_free(answer);
    dsg_free(pixel);
    return err;
}

dsg_status DSG_NAME(dsg_circular_create)(DSG_NAME(dsg_data_step) **step,
                                         const DSG_NAME(dsg_op) *op)
{
    size_t h = op->in.h, w = op->in.w, bins;
    /* a plane and two spectra of at most w + 2 columns, rounded up */
    if (!dsg_mul(h, w + 2, &bins) || bins > PTRDIFF_MAX / (8 * sizeof(dsg_real)))
        return DSG_ESHAPE;
    const DSG_NAME(dsg_fft) *plan;
    dsg_status err = DSG_NAME(dsg_fft_get)(&plan, h, w);
    if (err != DSG_OK)
        return err;

    DSG_NAME(circular) *s = dsg_calloc(1, sizeof *s);
    if (!s)
        return DSG_ENOMEM;
    s->step.class = &DSG_NAME(circular_class);
    s->step.op = op;
    s->plan = plan;
    s->h = h;
    s->w = w;
    s->bins = h * (w / 2 + 1);
    s->plane_ld = dsg_align_up(h * w * sizeof(dsg_real)) / sizeof(dsg_real);
    s->bins_ld = dsg_align_up(2 * s->bins * sizeof(dsg_real)) / sizeof(dsg_real);
    s->step.workspace = (s->plane_ld + 2 * s->bins_ld) * sizeof(dsg_real);
    s->eigenvalues = dsg_alloc(2 * s->bins, sizeof *s->eigenvalues);
    err = s->eigenvalues ? DSG_NAME(find_eigenvalues)(s) : DSG_ENOMEM;
    if (err != DSG_OK) {
        DSG_NAME(circular_destroy)(&s->step);
        return err;
    }
    *step = &s->step;
    return DSG_OK;
}
