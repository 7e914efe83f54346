/* Updates for one precision: loops over a block of an image each, which stays in the
 * first cache from one loop to the next. */

/* x <- a x + b y */
DSG_CLONES static void DSG_NAME(blend)(dsg_real *restrict x, const dsg_real *restrict y,
                                       size_t n, dsg_real a, dsg_real b)
{
    for (size_t i = 0; i < n; i++)
        x[i] = b * y[i] + a * x[i];
}

/* x <- x + a y */
DSG_CLONES static void DSG_NAME(add)(dsg_real *restrict x, const dsg_real *restrict y,
                                     size_t n, dsg_real a)
{
    for (size_t i = 0; i < n; i++)
        x[i] += a * y[i];
}

/* x <- x + exp(l / 2) noise, l between minlog and maxlog as the code says */
DSG_CLONES static void DSG_NAME(add_learned)(dsg_real *restrict x,
                                             const dsg_real *restrict noise,
                                             const dsg_real *restrict code, size_t n,
                                             dsg_real minlog, dsg_real maxlog)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real f = (code[i] + 1) / 2;
        dsg_real l = f * maxlog + (1 - f) * minlog;
        x[i] += DSG_NAME(exponential)(l / 2) * noise[i];
    }
}

DSG_CLONES static void DSG_NAME(turn)(dsg_real *restrict x, const dsg_real *restrict x0,
                                      size_t n, dsg_real signal, dsg_real spread,
                                      dsg_real signal_next, dsg_real direction)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real eps = (x[i] - signal * x0[i]) / spread;
        x[i] = signal_next * x0[i] + direction * eps;
    }
}

DSG_CLONES static void DSG_NAME(climb)(dsg_real *restrict x,
                                       const dsg_real *restrict denoised,
                                       const dsg_real *restrict gradient, size_t n,
                                       dsg_real variance, dsg_real weight, dsg_real eta)
{
    for (size_t i = 0; i < n; i++)
        x[i] += eta * ((denoised[i] - x[i]) / variance - weight * gradient[i]);
}

/* ---- the blocks of a batch ---- */

/* Works on entries from .. from + n - 1 of the batch, which are image i's; noise is
 * NULL where there is none. */
typedef void (*DSG_NAME(block_work))(const void *arg, size_t i, size_t from, size_t n,
                                     const dsg_real *noise);

typedef struct DSG_NAME(update) {
    DSG_NAME(block_work) work;
    const void *arg;
    DSG_NAME(normals) normals;
} DSG_NAME(update);

static dsg_status DSG_NAME(update_item)(void *arg, size_t i, void *scratch)
{
    const DSG_NAME(update) *u = arg;
    const DSG_NAME(normals) *s = &u->normals;
    (void)scratch;
    dsg_real buffer[DSG_NOISE_BLOCK];
    for (size_t at = 0, count; (count = block_count(s->n, at)); at += count) {
        const dsg_real *noise = NULL;
        if (s->noise || s->recorded)
            noise = DSG_NAME(normals_block)(s, i, 0, at, count, buffer);
        u->work(u->arg, i, i * s->n + at, count, noise);
    }
    return DSG_OK;
}

static dsg_status DSG_NAME(run)(DSG_NAME(block_work) work, const void *arg, size_t b,
                                size_t n, const dsg_noise *noise,
                                const dsg_real *recorded)
{
    DSG_NAME(update)
    u = {.work = work,
         .arg = arg,
         .normals = {.noise = noise, .recorded = recorded, .b = b, .n = n, .draws = 1}};
    if (b == 0)
        return DSG_OK;
    if (noise || recorded) {
        dsg_status err = DSG_NAME(normals_check)(&u.normals, 1);
        if (err)
            return err;
    }
    return dsg_parallel_for(b, 0, DSG_NAME(update_item), &u);
}

/* ---- DDPM ---- */

typedef struct DSG_NAME(ddpm) {
    dsg_real *x;
    const dsg_real *x0, *code, *gradient;
    const double *scale;
    dsg_real c1, c2, minlog, maxlog, std;
} DSG_NAME(ddpm);

static void DSG_NAME(ddpm_block)(const void *arg, size_t i, size_t from, size_t n,
                                 const dsg_real *noise)
{
    const DSG_NAME(ddpm) *k = arg;
    dsg_real *x = k->x + from;
    DSG_NAME(blend)(x, k->x0 + from, n, k->c2, k->c1);
    if (noise && k->code)
        DSG_NAME(add_learned)(x, noise, k->code + from, n, k->minlog, k->maxlog);
    else if (noise)
        DSG_NAME(add)(x, noise, n, k->std);
    if (k->gradient)
        DSG_NAME(add)(x, k->gradient + from, n, (dsg_real)-k->scale[i]);
}

dsg_status DSG_NAME(dsg_ddpm_step)(dsg_real *restrict x, const dsg_real *restrict x0,
                                   const dsg_real *restrict code,
                                   const dsg_real *restrict gradient,
                                   const double *restrict scale, size_t b, size_t n,
                                   const dsg_noise *noise,
                                   const dsg_real *restrict recorded,
                                   const dsg_ddpm_options *o)
{
    if (!isfinite(o->c1) || !isfinite(o->c2) || !isfinite(o->minlog) ||
        !isfinite(o->maxlog))
        return DSG_EVALUE;
    DSG_NAME(ddpm)
    k = {.x = x,
         .x0 = x0,
         .code = code,
         .gradient = gradient,
         .scale = scale,
         .c1 = (dsg_real)o->c1,
         .c2 = (dsg_real)o->c2,
         .minlog = (dsg_real)o->minlog,
         .maxlog = (dsg_real)o->maxlog,
         .std = (dsg_real)exp(o->minlog / 2)};
    return DSG_NAME(run)(DSG_NAME(ddpm_block), &k, b, n, noise, recorded);
}

/* ---- DDIM ---- */

typedef struct DSG_NAME(ddim) {
    dsg_real *x;
    const dsg_real *x0;
    dsg_real signal, spread, signal_next, direction, std;
} DSG_NAME(ddim);

static void DSG_NAME(ddim_block)(const void *arg, size_t i, size_t from, size_t n,
                                 const dsg_real *noise)
{
    const DSG_NAME(ddim) *k = arg;
    (void)i;
    DSG_NAME(turn)
    (k->x + from, k->x0 + from, n, k->signal, k->spread, k->signal_next, k->direction);
    if (noise)
        DSG_NAME(add)(k->x + from, noise, n, k->std);
}

dsg_status DSG_NAME(dsg_ddim_step)(dsg_real *restrict x, const dsg_real *restrict x0,
                                   size_t b, size_t n, const dsg_noise *noise,
                                   const dsg_real *restrict recorded,
                                   const dsg_ddim_options *o)
{
    double a = o->alpha_bar, next = o->alpha_bar_next;
    if (!(a > 0.0 && a < 1.0 && next > 0.0 && next <= 1.0) ||
        !dsg_ddim_std_fits(next, o->std))
        return DSG_EVALUE;
    double rest = 1.0 - next - o->std * o->std;
    DSG_NAME(ddim)
    k = {.x = x,
         .x0 = x0,
         .signal = (dsg_real)sqrt(a),
         .spread = (dsg_real)sqrt(1.0 - a),
         .signal_next = (dsg_real)sqrt(next),
         .direction = (dsg_real)(rest > 0.0 ? sqrt(rest) : 0.0),
         .std = (dsg_real)o->std};
    return DSG_NAME(run)(DSG_NAME(ddim_block), &k, b, n, noise, recorded);
}

/* ---- renoise ---- */

typedef struct DSG_NAME(renoise) {
    dsg_real *x;
    dsg_real scale, sigma;
} DSG_NAME(renoise);

static void DSG_NAME(renoise_block)(const void *arg, size_t i, size_t from, size_t n,
                                    const dsg_real *noise)
{
    const DSG_NAME(renoise) *k = arg;
    dsg_real *x = k->x + from;
    (void)i;
    if (noise)
        DSG_NAME(blend)(x, noise, n, k->scale, k->sigma);
    else
        for (size_t j = 0; j < n; j++)
            x[j] *= k->scale;
}

dsg_status DSG_NAME(dsg_renoise)(dsg_real *restrict x, size_t b, size_t n, double scale,
                                 double sigma, const dsg_noise *noise,
                                 const dsg_real *restrict recorded)
{
    if (!isfinite(scale) || !isfinite(sigma))
        return DSG_EVALUE;
    DSG_NAME(renoise)
    k = {.x = x, .scale = (dsg_real)scale, .sigma = (dsg_real)sigma};
    return DSG_NAME(run)(DSG_NAME(renoise_block), &k, b, n, noise, recorded);
}

/* ---- ALD ---- */

typedef struct DSG_NAME(ald) {
    dsg_real *x;
    const dsg_real *denoised, *gradient;
    dsg_real variance, weight, eta, amplitude;
} DSG_NAME(ald);

static void DSG_NAME(ald_block)(const void *arg, size_t i, size_t from, size_t n,
                                const dsg_real *noise)
{
    const DSG_NAME(ald) *k = arg;
    (void)i;
    DSG_NAME(climb)
    (k->x + from, k->denoised + from, k->gradient + from, n, k->variance, k->weight,
     k->eta);
    if (noise)
        DSG_NAME(add)(k->x + from, noise, n, k->amplitude);
}

dsg_status DSG_NAME(dsg_ald_step)(dsg_real *restrict x,
                                  const dsg_real *restrict denoised,
                                  const dsg_real *restrict gradient, size_t b, size_t n,
                                  const dsg_noise *noise,
                                  const dsg_real *restrict recorded,
                                  const dsg_ald_options *o)
{
    if (!(o->sigma > 0.0 && isfinite(o->sigma) && isfinite(o->weight) &&
          o->eta >= 0.0 && isfinite(o->eta)))
        return DSG_EVALUE;
    DSG_NAME(ald)
    k = {.x = x,
         .denoised = denoised,
         .gradient = gradient,
         .variance = (dsg_real)(o->sigma * o->sigma),
         .weight = (dsg_real)o->weight,
         .eta = (dsg_real)o->eta,
         .amplitude = (dsg_real)sqrt(2.0 * o->eta)};
    return DSG_NAME(run)(DSG_NAME(ald_block), &k, b, n, noise, recorded);
}

/* ---- Adam ---- */

typedef struct DSG_NAME(adam) {
    dsg_real *x, *m, *v;
    const dsg_real *gradient;
    dsg_real near, far;    /* 1 - beta1 and its complement, of which one is used */
    dsg_real beta2, rest2; /* and 1 - beta2 */
    dsg_real size, root, eps;
} DSG_NAME(adam);

DSG_CLONES static void DSG_NAME(adam_loop)(dsg_real *restrict x, dsg_real *restrict m,
                                           dsg_real *restrict v,
                                           const dsg_real *restrict gradient, size_t n,
                                           DSG_NAME(adam) k)
{
    for (size_t i = 0; i < n; i++) {
        dsg_real g = gradient[i], d = g - m[i];
        /* from the end that is nearer, as torch.lerp */
        dsg_real mean = k.near < (dsg_real)0.5 ? m[i] + k.near * d : g - d * k.far;
        dsg_real square = k.beta2 * v[i] + k.rest2 * g * g;
        m[i] = mean;
        v[i] = square;
#if DSG_PRECISION == 32
        x[i] -= k.size * mean / (sqrtf(square) / k.root + k.eps);
#else
        x[i] -= k.size * mean / (sqrt(square) / k.root + k.eps);
#endif
    }
}

static void DSG_NAME(adam_block)(const void *arg, size_t i, size_t from, size_t n,
                                 const dsg_real *noise)
{
    const DSG_NAME(adam) *k = arg;
    (void)i;
    (void)noise;
    DSG_NAME(adam_loop)
    (k->x + from, k->m + from, k->v + from, k->gradient + from, n, *k);
}

dsg_status DSG_NAME(dsg_adam_step)(dsg_real *restrict x, dsg_real *restrict m,
                                   dsg_real *restrict v,
                                   const dsg_real *restrict gradient, size_t b,
                                   size_t n, const dsg_adam_options *o)
{
    if (o->step == 0 || !(o->lr >= 0.0 && isfinite(o->lr)) ||
        !(o->beta1 >= 0.0 && o->beta1 < 1.0) || !(o->beta2 >= 0.0 && o->beta2 < 1.0) ||
        !(o->eps >= 0.0 && isfinite(o->eps)))
        return DSG_EVALUE;
    dsg_real near = (dsg_real)(1.0 - o->beta1);
    DSG_NAME(adam)
    k = {.x = x,
         .m = m,
         .v = v,
         .gradient = gradient,
         .near = near,
         .far = 1 - near,
         .beta2 = (dsg_real)o->beta2,
         .rest2 = (dsg_real)(1.0 - o->beta2),
         .size = (dsg_real)(o->lr / (1.0 - pow(o->beta1, (double)o->step))),
         .root = (dsg_real)sqrt(1.0 - pow(o->beta2, (double)o->step)),
         .eps = (dsg_real)o->eps};
    return DSG_NAME(run)(DSG_NAME(adam_block), &k, b, n, NULL, NULL);
}
