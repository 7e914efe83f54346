/* Separable data steps for one precision. */

/* One factor, U diag(s) V^T; the identity has none of the arrays. */
typedef struct DSG_NAME(factor) {
    size_t rows, columns, k;
    dsg_real *u;  /* (rows, k) */
    dsg_real *vt; /* (k, columns) */
    double *s;    /* (k), descending */
} DSG_NAME(factor);

typedef struct DSG_NAME(separable) {
    DSG_NAME(dsg_data_step) step;
    size_t channels;
    DSG_NAME(factor) r, t;
    bool shared; /* t has the arrays of r */
    /* where these begin in the workspace, in bytes, behind the residual: half a
     * transform, a whole one, a row of its multipliers, the operator's own workspace */
    size_t half, whole, gains, op;
} DSG_NAME(separable);

/* ---- work --------------------------------------------------------------------- */

static double DSG_NAME(singular_value)(const DSG_NAME(factor) *f, size_t i)
{
    return f->s ? f->s[i] : 1.0;
}

/* Multiplies a[c, i, j] by 1 / (d + rho / d), d = s[i] t[j], by 0 where d is at most
 * limit.  Not by d / (d^2 + rho): the square of a small d may be 0. */
static void DSG_NAME(apply_gains)(const DSG_NAME(separable) *k, dsg_real *restrict a,
                                  double rho, double limit, double *restrict gains)
{
    size_t rows = k->r.k, columns = k->t.k;
    for (size_t i = 0; i < rows; i++) {
        double s = DSG_NAME(singular_value)(&k->r, i);
        for (size_t j = 0; j < columns; j++) {
            double d = s * DSG_NAME(singular_value)(&k->t, j);
            gains[j] = d > limit ? 1.0 / (d + rho / d) : 0.0;
        }
        for (size_t c = 0; c < k->channels; c++) {
            dsg_real *row = a + (c * rows + i) * columns;
            for (size_t j = 0; j < columns; j++)
                row[j] = (dsg_real)(gains[j] * row[j]);
        }
    }
}

/* x += V_R [gains (U_R^T y U_T)] V_T^T; y, at the beginning of the workspace, may be
 * overwritten.  Products with T take all channels at once; those with an identity are
 * left out. */
static void DSG_NAME(add_solution)(const DSG_NAME(separable) *k, dsg_real *restrict x,
                                   double rho, double limit, char *ws)
{
    const DSG_NAME(factor) *r = &k->r, *t = &k->t;
    size_t channels = k->channels;
    dsg_real *y = (dsg_real *)ws, *half = y, *whole, *back;

    if (t->u) {
        half = (dsg_real *)(ws + k->half);
        DSG_NAME(dsg_gemm)
        (half, t->k, y, t->rows, false, t->u, t->k, false, channels * r->rows, t->k,
         t->rows, 1, 0);
    }
    whole = half;
    if (r->u) {
        whole = (dsg_real *)(ws + k->whole);
        for (size_t c = 0; c < channels; c++) {
            DSG_NAME(dsg_gemm)
            (whole + c * r->k * t->k, t->k, r->u, r->k, true, half + c * r->rows * t->k,
             t->k, false, r->k, t->k, r->rows, 1, 0);
        }
    }

    DSG_NAME(apply_gains)(k, whole, rho, limit, (double *)(ws + k->gains));

    back = whole;
    if (t->u) {
        size_t w = t->columns;
        back = r->u ? (dsg_real *)(ws + k->half) : x;
        DSG_NAME(dsg_gemm)
        (back, w, whole, t->k, false, t->vt, w, false, channels * r->k, w, t->k, 1,
         r->u ? 0 : 1);
    }
    if (r->u) {
        size_t h = r->columns, w = t->columns;
        for (size_t c = 0; c < channels; c++) {
            DSG_NAME(dsg_gemm)
            (x + c * h * w, w, r->vt, h, true, back + c * r->k * w, w, false, h, w,
             r->k, 1, 1);
        }
    }
    if (!r->u && !t->u)
        for (size_t i = 0; i < channels * r->rows * t->rows; i++)
            x[i] += whole[i];
}

static void DSG_NAME(separable_prox)(const DSG_NAME(dsg_data_step) *step,
                                     dsg_real *restrict x, const dsg_real *restrict v,
                                     const dsg_real *restrict y, double rho, void *ws)
{
    const DSG_NAME(separable) *k = (const DSG_NAME(separable) *)step;
    size_t n = dsg_shape_size(step->op->in), m = dsg_shape_size(step->op->out);
    dsg_real *residual = ws;
    DSG_NAME(dsg_op_forward)(step->op, residual, v, (char *)ws + k->op);
    for (size_t i = 0; i < m; i++)
        residual[i] = y[i] - residual[i];
    memcpy(x, v, n * sizeof *x);
    DSG_NAME(add_solution)(k, x, rho, 0.0, ws);
}

static void DSG_NAME(separable_pinv)(const DSG_NAME(dsg_data_step) *step,
                                     dsg_real *restrict x, const dsg_real *restrict y,
                                     double cutoff, void *ws)
{
    const DSG_NAME(separable) *k = (const DSG_NAME(separable) *)step;
    size_t n = dsg_shape_size(step->op->in), m = dsg_shape_size(step->op->out);
    memcpy(ws, y, m * sizeof *y);
    memset(x, 0, n * sizeof *x);
    DSG_NAME(add_solution)(k, x, 0.0, cutoff * step->norm, ws);
}

/* ---- set-up ------------------------------------------------------------------- */

static void DSG_NAME(free_factor)(DSG_NAME(factor) *f)
{
    dsg_free(f->u);
    dsg_free(f->vt);
    dsg_free(f->s);
}

static void DSG_NAME(separable_destroy)(DSG_NAME(dsg_data_step) *step)
{
    DSG_NAME(separable) *k = (DSG_NAME(separable) *)step;
    DSG_NAME(free_factor)(&k->r);
    if (!k->shared)
        DSG_NAME(free_factor)(&k->t);
    dsg_free(k);
}

static const DSG_NAME(dsg_data_step_class) DSG_NAME(separable_class) = {
    .prox = DSG_NAME(separable_prox),
    .pinv = DSG_NAME(separable_pinv),
    .destroy = DSG_NAME(separable_destroy),
};

/* n doubles in the working precision; NULL when out of memory. */
static dsg_real *DSG_NAME(rounded)(const double *a, size_t n)
{
    dsg_real *out = dsg_alloc(n, sizeof *out);
    if (out)
        for (size_t i = 0; i < n; i++)
            out[i] = (dsg_real)a[i];
    return out;
}

static dsg_status DSG_NAME(make_factor)(DSG_NAME(factor) *f, const double *a)
{
    thin_svd d = {0};
    dsg_status err = decompose(&d, a, f->rows, f->columns);
    if (err == DSG_OK) {
        f->k = d.k;
        f->u = DSG_NAME(rounded)(d.u, f->rows * d.k);
        f->vt = DSG_NAME(rounded)(d.vt, d.k * f->columns);
        f->s = d.s;
        d.s = NULL;
        if (!f->u || !f->vt)
            err = DSG_ENOMEM;
    }
    free_svd(&d);
    return err;
}

/* No size below exceeds the larger of the operator's two arrays. */
static void DSG_NAME(lay_out)(DSG_NAME(separable) *k)
{
    const DSG_NAME(dsg_op) *op = k->step.op;
    size_t down = k->channels * k->r.rows * k->t.k;
    size_t up = k->channels * k->r.k * k->t.columns;
    size_t half = k->t.u ? (down > up ? down : up) : 0;
    size_t whole = k->r.u ? k->channels * k->r.k * k->t.k : 0;
    k->half = dsg_align_up(dsg_shape_size(op->out) * sizeof(dsg_real));
    k->whole = k->half + dsg_align_up(half * sizeof(dsg_real));
    k->gains = k->whole + dsg_align_up(whole * sizeof(dsg_real));
    k->op = k->gains + dsg_align_up(k->t.k * sizeof(double));
    k->step.workspace = k->op + op->workspace;
}

dsg_status DSG_NAME(dsg_separable_create)(DSG_NAME(dsg_data_step) **step,
                                          const DSG_NAME(dsg_op) *op, size_t channels,
                                          size_t p, size_t h, size_t q, size_t w,
                                          const double *r, const double *t)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    if (!product_is(channels, h, w, n) || !product_is(channels, p, q, m) ||
        (!r && p != h) || (!t && q != w))
        return DSG_ESHAPE;
    *step = NULL;
    if (n > INT_MAX || m > INT_MAX || too_large(r, p, h) || too_large(t, q, w))
        return DSG_OK;

    DSG_NAME(separable) *k = dsg_calloc(1, sizeof *k);
    if (!k)
        return DSG_ENOMEM;
    k->step.class = &DSG_NAME(separable_class);
    k->step.op = op;
    k->channels = channels;
    k->r = (DSG_NAME(factor)){.rows = p, .columns = h, .k = p};
    k->t = (DSG_NAME(factor)){.rows = q, .columns = w, .k = q};
    k->shared = r && t && p == q && h == w && memcmp(r, t, p * h * sizeof *r) == 0;
    dsg_status err = DSG_OK;
    if (r)
        err = DSG_NAME(make_factor)(&k->r, r);
    if (k->shared)
        k->t = k->r;
    else if (err == DSG_OK && t)
        err = DSG_NAME(make_factor)(&k->t, t);
    if (err != DSG_OK) {
        DSG_NAME(separable_destroy)(&k->step);
        return err;
    }
    k->step.norm =
        DSG_NAME(singular_value)(&k->r, 0) * DSG_NAME(singular_value)(&k->t, 0);
    DSG_NAME(lay_out)(k);
    *step = &k->step;
    return DSG_OK;
}
