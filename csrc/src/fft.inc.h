/* Plans and their execution for one precision; FFTW(x) is FFTW's name of x. */

struct DSG_NAME(dsg_fft) {
    size_t h, w;
    FFTW(plan) forward, inverse;
    struct DSG_NAME(dsg_fft) *next;
};

static DSG_NAME(dsg_fft) *DSG_NAME(plans); /* guarded by planner */

/* Makes both plans of size (h, w); the planner must be held. */
static dsg_status DSG_NAME(make_plan)(DSG_NAME(dsg_fft) **plan, size_t h, size_t w)
{
    dsg_status err = DSG_ENOMEM;
    DSG_NAME(dsg_fft) *p = dsg_calloc(1, sizeof *p);
    dsg_real *x = NULL, *spectrum = NULL;
    if (!p)
        goto done;
    x = dsg_alloc(h * w, sizeof *x);
    if (!x)
        goto done;
    spectrum = dsg_alloc(h * (w / 2 + 1), 2 * sizeof *spectrum);
    if (!spectrum)
        goto done;

    err = DSG_EINTERNAL;
    p->h = h;
    p->w = w;
    p->forward = FFTW(plan_dft_r2c_2d)((int)h, (int)w, x, (FFTW(complex) *)spectrum,
                                       PLANNER_FLAGS);
    p->inverse = FFTW(plan_dft_c2r_2d)((int)h, (int)w, (FFTW(complex) *)spectrum, x,
                                       PLANNER_FLAGS | FFTW_DESTROY_INPUT);
    if (!p->forward || !p->inverse) {
        if (p->forward)
            FFTW(destroy_plan)(p->forward);
        if (p->inverse)
            FFTW(destroy_plan)(p->inverse);
        goto done;
    }
    *plan = p;
    p = NULL;
    err = DSG_OK;
done:
    dsg_free(spectrum);
    dsg_free(x);
    dsg_free(p);
    return err;
}

dsg_status DSG_NAME(dsg_fft_get)(const DSG_NAME(dsg_fft) **plan, size_t h, size_t w)
{
    size_t n;
    if (h == 0 || w == 0 || h > INT_MAX || w > INT_MAX || !dsg_mul(h, w, &n))
        return DSG_ESHAPE;

    dsg_status err = DSG_OK;
    pthread_mutex_lock(&planner);
    DSG_NAME(dsg_fft) *p = DSG_NAME(plans);
    while (p && (p->h != h || p->w != w))
        p = p->next;
    if (!p) {
        err = DSG_NAME(make_plan)(&p, h, w);
        if (err == DSG_OK) {
            p->next = DSG_NAME(plans);
            DSG_NAME(plans) = p;
        }
    }
    pthread_mutex_unlock(&planner);
    if (err == DSG_OK)
        *plan = p;
    return err;
}

void DSG_NAME(dsg_fft_forward)(const DSG_NAME(dsg_fft) *plan,
                               dsg_real *restrict spectrum, dsg_real *restrict x)
{
    FFTW(execute_dft_r2c)(plan->forward, x, (FFTW(complex) *)spectrum);
}

void DSG_NAME(dsg_fft_inverse)(const DSG_NAME(dsg_fft) *plan, dsg_real *restrict x,
                               dsg_real *restrict spectrum)
{
    FFTW(execute_dft_c2r)(plan->inverse, (FFTW(complex) *)spectrum, x);
}

/* ---- lines ---- */

struct DSG_NAME(dsg_fft_line) {
    size_t n;
    FFTW(plan) forward, inverse;
    struct DSG_NAME(dsg_fft_line) *next;
};

static DSG_NAME(dsg_fft_line) *DSG_NAME(line_plans); /* guarded by planner */

/* Makes both plans of length n; the planner must be held. */
static dsg_status DSG_NAME(make_line_plan)(DSG_NAME(dsg_fft_line) **plan, size_t n)
{
    dsg_status err = DSG_ENOMEM;
    DSG_NAME(dsg_fft_line) *p = dsg_calloc(1, sizeof *p);
    dsg_real *in = dsg_alloc(n, 2 * sizeof *in), *out = dsg_alloc(n, 2 * sizeof *out);
    if (!p || !in || !out)
        goto done;

    err = DSG_EINTERNAL;
    p->n = n;
    p->forward = FFTW(plan_dft_1d)((int)n, (FFTW(complex) *)in, (FFTW(complex) *)out,
                                   FFTW_FORWARD, PLANNER_FLAGS | FFTW_PRESERVE_INPUT);
    p->inverse = FFTW(plan_dft_1d)((int)n, (FFTW(complex) *)in, (FFTW(complex) *)out,
                                   FFTW_BACKWARD, PLANNER_FLAGS | FFTW_PRESERVE_INPUT);
    if (!p->forward || !p->inverse) {
        if (p->forward)
            FFTW(destroy_plan)(p->forward);
        if (p->inverse)
            FFTW(destroy_plan)(p->inverse);
        goto done;
    }
    *plan = p;
    p = NULL;
    err = DSG_OK;
done:
    dsg_free(out);
    dsg_free(in);
    dsg_free(p);
    return err;
}

dsg_status DSG_NAME(dsg_fft_line_get)(const DSG_NAME(dsg_fft_line) **plan, size_t n)
{
    if (n == 0 || n > INT_MAX)
        return DSG_ESHAPE;

    dsg_status err = DSG_OK;
    pthread_mutex_lock(&planner);
    DSG_NAME(dsg_fft_line) *p = DSG_NAME(line_plans);
    while (p && p->n != n)
        p = p->next;
    if (!p) {
        err = DSG_NAME(make_line_plan)(&p, n);
        if (err == DSG_OK) {
            p->next = DSG_NAME(line_plans);
            DSG_NAME(line_plans) = p;
        }
    }
    pthread_mutex_unlock(&planner);
    if (err == DSG_OK)
        *plan = p;
    return err;
}

/* FFTW takes no const, but PRESERVE_INPUT holds. */
void DSG_NAME(dsg_fft_line_forward)(const DSG_NAME(dsg_fft_line) *plan,
                                    dsg_real *restrict out, const dsg_real *restrict in)
{
    FFTW(execute_dft)
    (plan->forward, (FFTW(complex) *)in, (FFTW(complex) *)out);
}

void DSG_NAME(dsg_fft_line_inverse)(const DSG_NAME(dsg_fft_line) *plan,
                                    dsg_real *restrict out, const dsg_real *restrict in)
{
    FFTW(execute_dft)
    (plan->inverse, (FFTW(complex) *)in, (FFTW(complex) *)out);
}
