/* Samplers' updates for one precision. */

typedef struct DSG_NAME(normal_batch) {
    dsg_real *out;
    size_t n;
    const dsg_noise *noise;
} DSG_NAME(normal_batch);

static dsg_status DSG_NAME(normal_item)(void *arg, size_t i, void *scratch)
{
    const DSG_NAME(normal_batch) *k = arg;
    (void)scratch;
    DSG_NAME(dsg_normal)(k->out + i * k->n, noise_key(k->noise, i, 0), k->n);
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_normal_batch)(dsg_real *out, size_t b, size_t n,
                                      const dsg_noise *noise)
{
    if (n > DSG_NOISE_MOST)
        return DSG_ESHAPE;
    DSG_NAME(normal_batch) k = {.out = out, .n = n, .noise = noise};
    return dsg_parallel_for(b, 0, DSG_NAME(normal_item), &k);
}

dsg_status DSG_NAME(dsg_euler_step)(dsg_real *restrict x,
                                    const dsg_real *restrict denoised, size_t n,
                                    double sigma, double sigma_next)
{
    if (!(sigma > 0.0 && isfinite(sigma) && sigma_next >= 0.0 && isfinite(sigma_next)))
        return DSG_EVALUE;
    dsg_real c = (dsg_real)((sigma_next - sigma) / sigma);
    for (size_t i = 0; i < n; i++)
        x[i] += c * (x[i] - denoised[i]);
    return DSG_OK;
}

/* g <- likelihood g + prior (x - x0hat) */
DSG_CLONES static void DSG_NAME(posterior_gradient)(dsg_real *restrict g,
                                                    const dsg_real *restrict x,
                                                    const dsg_real *restrict x0hat,
                                                    size_t n, dsg_real likelihood,
                                                    dsg_real prior)
{
    for (size_t i = 0; i < n; i++)
        g[i] = likelihood * g[i] + prior * (x[i] - x0hat[i]);
}

/* x <- x - eta g + amplitude noise */
DSG_CLONES static void DSG_NAME(noisy_step)(dsg_real *restrict x,
                                            const dsg_real *restrict g,
                                            const dsg_real *restrict noise, size_t n,
                                            dsg_real eta, dsg_real amplitude)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] - eta * g[i] + amplitude * noise[i];
}

/* False when any entry is NaN or Inf: only those times 0 are not 0. */
DSG_CLONES static bool DSG_NAME(all_finite)(const dsg_real *restrict x, size_t n)
{
    dsg_real lane[16] = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++)
            lane[k] += x[i + k] * 0;
    for (; i < n; i++)
        lane[0] += x[i] * 0;
    for (size_t k = 1; k < 16; k++)
        lane[0] += lane[k];
    return lane[0] == 0;
}

typedef struct DSG_NAME(langevin) {
    dsg_real *x;
    double *sqnorm;
    const dsg_real *x0hat, *y;
    size_t b;
    const DSG_NAME(dsg_op) *op;
    const DSG_NAME(dsg_projector) *projector;
    const dsg_noise *noise;
    const dsg_real *recorded;
    const dsg_langevin_options *options;
} DSG_NAME(langevin);

/* All steps of one image.  Scratch: its gradient, then the projector's and the
 * operator's workspace, which are never in use together. */
static dsg_status DSG_NAME(langevin_item)(void *arg, size_t i, void *scratch)
{
    const DSG_NAME(langevin) *k = arg;
    const dsg_langevin_options *o = k->options;
    size_t n = dsg_shape_size(k->op->in), m = dsg_shape_size(k->op->out);
    dsg_real *x = k->x + i * n;
    const dsg_real *x0hat = k->x0hat + i * n, *y = k->y + i * m;
    dsg_real *g = scratch;
    void *ws = (char *)scratch + dsg_align_up(n * sizeof(dsg_real));
    dsg_real eta = (dsg_real)o->eta, amplitude = (dsg_real)sqrt(2.0 * o->eta);

    double sqnorm = NAN;
    for (size_t step = 0; step < o->steps; step++) {
        sqnorm = DSG_NAME(dsg_op_residual_gradient)(k->op, g, x, y, ws);
        if (!isfinite(sqnorm))
            break;
        DSG_NAME(posterior_gradient)
        (g, x, x0hat, n, (dsg_real)o->likelihood, (dsg_real)o->prior);
        if (k->projector)
            DSG_NAME(dsg_projector_apply)(k->projector, i, g, ws);

        if (k->recorded) {
            const dsg_real *noise = k->recorded + (step * k->b + i) * n;
            DSG_NAME(noisy_step)(x, g, noise, n, eta, amplitude);
            continue;
        }
        dsg_noise_key key = noise_key(k->noise, i, step);
        for (size_t at = 0; at < n; at += DSG_NOISE_BLOCK) {
            float noise[DSG_NOISE_BLOCK];
            dsg_noise_block(noise, key, (uint32_t)(at / DSG_NOISE_BLOCK));
            size_t left = n - at < DSG_NOISE_BLOCK ? n - at : DSG_NOISE_BLOCK;
#if DSG_PRECISION == 32
            DSG_NAME(noisy_step)(x + at, g + at, noise, left, eta, amplitude);
#else
            double wide[DSG_NOISE_BLOCK];
            for (size_t j = 0; j < left; j++)
                wide[j] = noise[j];
            DSG_NAME(noisy_step)(x + at, g + at, wide, left, eta, amplitude);
#endif
        }
    }
    bool finite = isfinite(sqnorm) && DSG_NAME(all_finite)(x, n);
    k->sqnorm[i] = finite ? sqnorm : NAN;
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_langevin)(dsg_real *x, double *sqnorm, const dsg_real *x0hat,
                                  const dsg_real *y, size_t b,
                                  const DSG_NAME(dsg_op) *op,
                                  const DSG_NAME(dsg_projector) *projector,
                                  const dsg_noise *noise, const dsg_real *recorded,
                                  const dsg_langevin_options *options)
{
    if (options->steps == 0 || !(options->eta > 0.0) || !isfinite(options->eta) ||
        !isfinite(options->likelihood) || !isfinite(options->prior))
        return DSG_EVALUE;

    size_t ws = DSG_NAME(dsg_op_workspace)(op);
    if (projector) {
        dsg_shape s = DSG_NAME(dsg_projector_shape)(projector);
        if (s.c != op->in.c || s.h != op->in.h || s.w != op->in.w ||
            DSG_NAME(dsg_projector_batch)(projector) != b)
            return DSG_ESHAPE;
        if (!DSG_NAME(dsg_projector_ranks)(projector))
            return DSG_ENOTREADY;
        size_t own = DSG_NAME(dsg_projector_workspace)(projector);
        ws = own > ws ? own : ws;
    }
    if (b == 0)
        return DSG_OK;
    if (!recorded) {
        if (!noise || options->steps - 1 > UINT32_MAX - noise->draw)
            return DSG_EVALUE;
        if (dsg_shape_size(op->in) > DSG_NOISE_MOST)
            return DSG_ESHAPE;
    }
    DSG_NAME(langevin)
    k = {.x = x,
         .sqnorm = sqnorm,
         .x0hat = x0hat,
         .y = y,
         .b = b,
         .op = op,
         .projector = projector,
         .noise = noise,
         .recorded = recorded,
         .options = options};
    size_t scratch = dsg_align_up(dsg_shape_size(op->in) * sizeof(dsg_real)) + ws;
    return dsg_parallel_for(b, scratch, DSG_NAME(langevin_item), &k);
}
