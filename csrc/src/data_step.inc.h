/* The exact data step for one precision: the calls through the table, and conjugate
 * gradients and a Lanczos iteration where the table is missing. */

/* ---- vectors ------------------------------------------------------------------ */

/* r <- y - r */
static void DSG_NAME(subtract_from)(dsg_real *restrict r, const dsg_real *restrict y,
                                    size_t n)
{
    for (size_t i = 0; i < n; i++)
        r[i] = y[i] - r[i];
}

/* x <- x + c p */
static void DSG_NAME(add_multiple)(dsg_real *restrict x, const dsg_real *restrict p,
                                   dsg_real c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += c * p[i];
}

/* p <- r + c p */
static void DSG_NAME(scale_and_add)(dsg_real *restrict p, const dsg_real *restrict r,
                                    dsg_real c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = r[i] + c * p[i];
}

/* Sixteen lanes of double, as in sums.h. */
DSG_CLONES static double DSG_NAME(dot)(const dsg_real *restrict a,
                                       const dsg_real *restrict b, size_t n)
{
    double lane[16] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++)
            lane[l] += (double)a[i + l] * b[i + l];
    for (size_t l = 0; i < n; i++, l++)
        lane[l] += (double)a[i] * b[i];
    for (size_t l = 0; l < 16; l++)
        sum += lane[l];
    return sum;
}

static double DSG_NAME(norm)(const dsg_real *x, size_t n)
{
    return sqrt(DSG_NAME(dsg_sum_of_squares)(x, n, 1.0));
}

/* ---- conjugate gradients ------------------------------------------------------ */

/* M x = b with M = a A^T A + c and b = a A^T y + c v, for one image.  a and c are 1 and
 * rho divided by the larger of both, so that no rho overflows.
 *
 * The residual is carried in two parts, s = y - A x and r = b - M x =
 * a A^T s + c (v - x): M is never formed with its rounding, and p^T M p is a sum of
 * squares.  (Hestenes and Stiefel 1952; "CGLS" in Bjorck, Numerical Methods for Least
 * Squares Problems, 1996.) */
typedef struct DSG_NAME(system) {
    const DSG_NAME(dsg_op) *op;
    size_t n, m;
    const dsg_real *v, *y; /* v: NULL stands for 0 */
    double a, c;
    dsg_real *r, *p, *best; /* (n); the best x of those whose true residual is known */
    dsg_real *s, *q;        /* (m); q = A p */
    void *ws;               /* the operator's */
} DSG_NAME(system);

/* Bytes of such a system's vectors, in front of the operator's workspace. */
static size_t DSG_NAME(system_bytes)(const DSG_NAME(dsg_op) *op)
{
    size_t n = dsg_align_up(dsg_shape_size(op->in) * sizeof(dsg_real));
    size_t m = dsg_align_up(dsg_shape_size(op->out) * sizeof(dsg_real));
    return 3 * n + 2 * m;
}

static DSG_NAME(system)
    DSG_NAME(make_system)(const DSG_NAME(dsg_op) *op, const dsg_real *v,
                          const dsg_real *y, double rho, void *ws)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    size_t n_bytes = dsg_align_up(n * sizeof(dsg_real));
    size_t m_bytes = dsg_align_up(m * sizeof(dsg_real));
    char *at = ws;
    return (DSG_NAME(system)){
        .op = op,
        .n = n,
        .m = m,
        .v = v,
        .y = y,
        .a = rho > 1.0 ? 1.0 / rho : 1.0,
        .c = rho > 1.0 ? 1.0 : rho,
        .r = (dsg_real *)at,
        .p = (dsg_real *)(at + n_bytes),
        .best = (dsg_real *)(at + 2 * n_bytes),
        .s = (dsg_real *)(at + 3 * n_bytes),
        .q = (dsg_real *)(at + 3 * n_bytes + m_bytes),
        .ws = at + 3 * n_bytes + 2 * m_bytes,
    };
}

/* r = a A^T s + c (v - x), x NULL for 0; returns its squared norm. */
static double DSG_NAME(update_residual)(const DSG_NAME(system) *k, const dsg_real *s,
                                        const dsg_real *x)
{
    dsg_real a = (dsg_real)k->a, c = (dsg_real)k->c, *restrict r = k->r;
    const dsg_real *restrict v = k->v;
    DSG_NAME(dsg_op_vjp)(k->op, r, NULL, s, k->ws);
    if (v && x)
        for (size_t i = 0; i < k->n; i++)
            r[i] = a * r[i] + c * (v[i] - x[i]);
    else if (x)
        for (size_t i = 0; i < k->n; i++)
            r[i] = a * r[i] - c * x[i];
    else if (v)
        for (size_t i = 0; i < k->n; i++)
            r[i] = a * r[i] + c * v[i];
    else
        for (size_t i = 0; i < k->n; i++)
            r[i] = a * r[i];
    return DSG_NAME(dsg_sum_of_squares)(r, k->n, 1.0);
}

/* The same with s computed anew. */
static double DSG_NAME(true_residual)(const DSG_NAME(system) *k, const dsg_real *x)
{
    DSG_NAME(dsg_op_forward)(k->op, k->s, x, k->ws);
    DSG_NAME(subtract_from)(k->s, k->y, k->m);
    return DSG_NAME(update_residual)(k, k->s, x);
}

/* One step along p; *rr = ||r||^2 before and after.  False, and nothing done, where p
 * has no length left that the precision can tell from 0.  The step is the exact minimum
 * along p: with ||r||^2 for r^T p, which is the same but for rounding, the residual
 * grows again once rounding is all that is left of it. */
static bool DSG_NAME(cg_step)(const DSG_NAME(system) *k, dsg_real *x, double *rr)
{
    DSG_NAME(dsg_op_forward)(k->op, k->q, k->p, k->ws);
    double curvature = k->a * DSG_NAME(dsg_sum_of_squares)(k->q, k->m, 1.0) +
                       k->c * DSG_NAME(dsg_sum_of_squares)(k->p, k->n, 1.0);
    dsg_real step = (dsg_real)(DSG_NAME(dot)(k->r, k->p, k->n) / curvature);
    if (!positive(curvature) || !isfinite(step))
        return false;
    DSG_NAME(add_multiple)(x, k->p, step, k->n);
    DSG_NAME(add_multiple)(k->s, k->q, -step, k->m);
    double next = DSG_NAME(update_residual)(k, k->s, x);
    DSG_NAME(scale_and_add)(k->p, k->r, (dsg_real)(next / *rr), k->n);
    *rr = next;
    return true;
}

/* Solves from x = v.
 *
 * The norm of the residual does not fall monotonically: one check without progress is
 * no reason to stop.  Two are: it is the recurrence alone that progresses, or
 * MOST_STALLS checks in a row bring nothing.  x is then the best one that was seen. */
static void DSG_NAME(cg)(const DSG_NAME(system) *k, dsg_real *x,
                         const dsg_cg_options *options, dsg_cg_info *info)
{
    double b = sqrt(DSG_NAME(update_residual)(k, k->y, NULL));
    if (b == 0.0 || !isfinite(b)) {
        dsg_real fill = b == 0.0 ? 0 : (dsg_real)NAN;
        for (size_t i = 0; i < k->n; i++)
            x[i] = fill;
        *info = (dsg_cg_info){.residual = b == 0.0 ? 0.0 : NAN};
        return;
    }
    size_t bytes = k->n * sizeof *x, done = 0, stalls = 0;
    if (k->v)
        memcpy(x, k->v, bytes);
    else
        memset(x, 0, bytes);

    /* b itself is not known better than to epsilon */
    const double epsilon = DSG_PRECISION == 32 ? FLT_EPSILON : DBL_EPSILON;
    double limit = fmax(options->tolerance, epsilon) * b;
    double rr = DSG_NAME(true_residual)(k, x), norm = sqrt(rr), best = norm;
    bool moving = true;
    memcpy(k->p, k->r, bytes);
    memcpy(k->best, x, bytes);
    while (moving && norm > limit && done < options->iterations) {
        for (size_t i = 0; i < CHECK_EVERY && done < options->iterations; i++, done++) {
            moving = sqrt(rr) > limit && DSG_NAME(cg_step)(k, x, &rr);
            if (!moving)
                break;
        }
        double carried = sqrt(rr);
        /* that the recurrence has reached the limit is no reason to stop */
        moving = moving || carried <= limit;

        rr = DSG_NAME(true_residual)(k, x);
        norm = sqrt(rr);
        bool drifted = !(norm <= 2.0 * carried);
        if (norm < best) {
            best = norm;
            stalls = 0;
            memcpy(k->best, x, bytes);
        } else if (drifted || ++stalls == MOST_STALLS) {
            break;
        }
        if (drifted)
            memcpy(k->p, k->r, bytes);
    }
    if (!(norm <= best))
        memcpy(x, k->best, bytes);
    *info = (dsg_cg_info){.residual = best / b, .iterations = done};
}

/* ---- norm --------------------------------------------------------------------- */

/* Golub-Kahan bidiagonalisation A V = U B from a fixed pseudo-random start, without
 * reorthogonalisation: copies of converged values do not disturb the largest one.
 *
 * The estimate after k steps grows towards the norm.  Where the singular values pile up
 * below it, the error falls like 1 / k^2, so that the growth over the second half of
 * the steps is three times the error left; where there is a gap, the error is smaller
 * still. */
static dsg_status DSG_NAME(lanczos)(const DSG_NAME(dsg_op) *op, double *estimate,
                                    dsg_real *v, dsg_real *v_next, dsg_real *u,
                                    dsg_real *u_next, double *alpha, double *beta,
                                    double *work, void *ws)
{
    const double tolerance = DSG_PRECISION == 32 ? 5e-5 : 5e-7;
    const double negligible = DSG_PRECISION == 32 ? FLT_EPSILON : DBL_EPSILON;
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);

    DSG_NAME(dsg_normal)(v, (dsg_noise_key){.seed = 1}, n);
    memset(u, 0, m * sizeof *u);
    double length = DSG_NAME(norm)(v, n), largest = 0.0, before = 0.0;
    for (size_t i = 0; i < n; i++)
        v[i] = (dsg_real)(v[i] / length);

    size_t check = FIRST_STEPS;
    for (size_t k = 0; k < MOST_STEPS; k++) {
        /* alpha u' = A v - beta u */
        DSG_NAME(dsg_op_forward)(op, u_next, v, ws);
        if (k > 0)
            DSG_NAME(add_multiple)(u_next, u, (dsg_real)-before, m);
        alpha[k] = DSG_NAME(norm)(u_next, m);
        if (!isfinite(alpha[k]))
            return DSG_ENOCONV;
        largest = fmax(largest, alpha[k]);
        bool exhausted = alpha[k] <= negligible * largest;

        /* beta v' = A^T u - alpha v */
        if (!exhausted) {
            for (size_t i = 0; i < m; i++)
                u[i] = (dsg_real)(u_next[i] / alpha[k]);
            DSG_NAME(dsg_op_vjp)(op, v_next, NULL, u, ws);
            DSG_NAME(add_multiple)(v_next, v, (dsg_real)-alpha[k], n);
            beta[k] = before = DSG_NAME(norm)(v_next, n);
            if (!isfinite(before))
                return DSG_ENOCONV;
            largest = fmax(largest, before);
            exhausted = before <= negligible * largest;
        } else {
            beta[k] = 0.0;
        }

        size_t steps = k + 1;
        if (exhausted) /* an invariant subspace: its values are exact */
            return largest_value(estimate, alpha, beta, steps, work);
        if (steps == check) {
            double half;
            dsg_status err = largest_value(&half, alpha, beta, steps / 2, work);
            if (!err)
                err = largest_value(estimate, alpha, beta, steps, work);
            if (err || *estimate - half <= tolerance * *estimate)
                return err;
            check += check & (check - 1) ? check / 3 : check / 2; /* 8 12 16 24 .. */
        }
        for (size_t i = 0; i < n; i++)
            v[i] = (dsg_real)(v_next[i] / before);
    }
    return DSG_ENOCONV;
}

static dsg_status DSG_NAME(iterated_norm)(const DSG_NAME(dsg_op) *op, double *norm)
{
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    if (n > DSG_NOISE_MOST)
        return DSG_ESHAPE;
    dsg_status err = DSG_ENOMEM;
    dsg_real *v = dsg_alloc(n, sizeof *v), *v_next = dsg_alloc(n, sizeof *v);
    dsg_real *u = dsg_alloc(m, sizeof *u), *u_next = dsg_alloc(m, sizeof *u);
    double *scalars = dsg_alloc(4 * MOST_STEPS, sizeof *scalars);
    void *ws = dsg_alloc(op->workspace, 1);
    if (v && v_next && u && u_next && scalars && ws) {
        err = DSG_NAME(lanczos)(op, norm, v, v_next, u, u_next, scalars,
                                scalars + MOST_STEPS, scalars + 2 * MOST_STEPS, ws);
    }
    dsg_free(ws);
    dsg_free(scalars);
    dsg_free(u_next);
    dsg_free(u);
    dsg_free(v_next);
    dsg_free(v);
    return err;
}

/* ---- the interface ------------------------------------------------------------ */

dsg_status DSG_NAME(dsg_data_step_create)(DSG_NAME(dsg_data_step) **step,
                                          const DSG_NAME(dsg_op) *op)
{
    if (!op->class->linear)
        return DSG_EVALUE;
    DSG_NAME(dsg_data_step) *made = NULL;
    if (op->class->data_step) {
        dsg_status err = op->class->data_step(op, &made);
        if (err != DSG_OK)
            return err;
    }
    if (!made) {
        size_t longest = dsg_shape_size(op->in) > dsg_shape_size(op->out)
                             ? dsg_shape_size(op->in)
                             : dsg_shape_size(op->out);
        if (longest > PTRDIFF_MAX / 8 / sizeof(dsg_real) ||
            op->workspace > PTRDIFF_MAX / 2)
            return DSG_ESHAPE;
        made = dsg_calloc(1, sizeof *made);
        if (!made)
            return DSG_ENOMEM;
        made->op = op;
        made->workspace = DSG_NAME(system_bytes)(op) + op->workspace;
    }
    *step = made;
    return DSG_OK;
}

/* A batch; v is NULL for a pseudo-inverse by conjugate gradients and for one in closed
 * form, which `cutoff` tells from a prox. */
typedef struct DSG_NAME(data_step_batch) {
    const DSG_NAME(dsg_data_step) *step;
    dsg_real *x;
    const dsg_real *v, *y;
    double rho, cutoff;
    const dsg_cg_options *options;
    dsg_cg_info *info;
} DSG_NAME(data_step_batch);

static dsg_status DSG_NAME(data_step_item)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(data_step_batch) *k = arg;
    const DSG_NAME(dsg_op) *op = k->step->op;
    size_t n = dsg_shape_size(op->in), m = dsg_shape_size(op->out);
    dsg_real *x = k->x + i * n;
    const dsg_real *v = k->v ? k->v + i * n : NULL, *y = k->y + i * m;
    dsg_cg_info info = {0};
    if (!k->step->class) {
        DSG_NAME(system) system = DSG_NAME(make_system)(op, v, y, k->rho, ws);
        DSG_NAME(cg)(&system, x, k->options, &info);
    } else if (v) {
        k->step->class->prox(k->step, x, v, y, k->rho, ws);
    } else {
        k->step->class->pinv(k->step, x, y, k->cutoff, ws);
    }
    if (k->info)
        k->info[i] = info;
    return DSG_OK;
}

/* Options are needed by conjugate gradients; a closed form may go without. */
static bool DSG_NAME(options_valid)(const DSG_NAME(dsg_data_step) *step,
                                    const dsg_cg_options *options)
{
    if (!options)
        return step->class;
    return positive(options->tolerance) && options->iterations > 0;
}

dsg_status DSG_NAME(dsg_data_step_prox_batch)(const DSG_NAME(dsg_data_step) *step,
                                              dsg_real *x, const dsg_real *v,
                                              const dsg_real *y, double rho,
                                              const dsg_cg_options *options,
                                              dsg_cg_info *info, size_t b)
{
    if (!positive(rho) || !DSG_NAME(options_valid)(step, options))
        return DSG_EVALUE;
    DSG_NAME(data_step_batch)
    k = {.step = step,
         .x = x,
         .v = v,
         .y = y,
         .rho = rho,
         .options = options,
         .info = info};
    return dsg_parallel_for(b, step->workspace, DSG_NAME(data_step_item), &k);
}

dsg_status DSG_NAME(dsg_data_step_pinv_batch)(const DSG_NAME(dsg_data_step) *step,
                                              dsg_real *x, const dsg_real *y,
                                              double cutoff,
                                              const dsg_cg_options *options,
                                              dsg_cg_info *info, size_t b)
{
    bool cutoff_valid = positive(cutoff) || (step->class && cutoff == 0.0);
    if (!cutoff_valid || !DSG_NAME(options_valid)(step, options))
        return DSG_EVALUE;
    double norm = 0.0;
    if (!step->class && b > 0) {
        dsg_status err = DSG_NAME(iterated_norm)(step->op, &norm);
        if (err != DSG_OK)
            return err;
    }
    DSG_NAME(data_step_batch)
    k = {.step = step,
         .x = x,
         .y = y,
         .rho = cutoff * norm * (cutoff * norm),
         .cutoff = cutoff,
         .options = options,
         .info = info};
    return dsg_parallel_for(b, step->workspace, DSG_NAME(data_step_item), &k);
}

dsg_status DSG_NAME(dsg_data_step_norm)(const DSG_NAME(dsg_data_step) *step,
                                        double *norm)
{
    if (!step->class)
        return DSG_NAME(iterated_norm)(step->op, norm);
    *norm = step->norm;
    return DSG_OK;
}

void DSG_NAME(dsg_data_step_destroy)(DSG_NAME(dsg_data_step) *step)
{
    if (!step)
        return;
    if (step->class)
        step->class->destroy(step);
    else
        dsg_free(step);
}
