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

/* ---- the loops of a level ---- */

/* g <- likelihood g + prior (x - x0hat) */
DSG_CLONES static void DSG_NAME(posterior)(dsg_real *restrict g,
                                           const dsg_real *restrict x,
                                           const dsg_real *restrict x0hat, size_t n,
                                           dsg_real likelihood, dsg_real prior)
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

/* v <- momentum v - root g + amplitude noise, x <- x + root v */
DSG_CLONES static void DSG_NAME(leap)(dsg_real *restrict x, dsg_real *restrict v,
                                      const dsg_real *restrict g,
                                      const dsg_real *restrict noise, size_t n,
                                      dsg_real momentum, dsg_real root,
                                      dsg_real amplitude)
{
    for (size_t i = 0; i < n; i++) {
        v[i] = momentum * v[i] - root * g[i] + amplitude * noise[i];
        x[i] += root * v[i];
    }
}

/* out <- x + root noise */
DSG_CLONES static void DSG_NAME(propose)(dsg_real *restrict out,
                                         const dsg_real *restrict x,
                                         const dsg_real *restrict noise, size_t n,
                                         dsg_real root)
{
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] + root * noise[i];
}

/* ||x - y||^2, in 16 lanes of double */
DSG_CLONES static double DSG_NAME(distance)(const dsg_real *restrict x,
                                            const dsg_real *restrict y, size_t n)
{
    double lane[16] = {0}, sum = 0.0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++) {
            double d = (double)x[i + l] - y[i + l];
            lane[l] += d * d;
        }
    for (size_t l = 0; i < n; i++, l++) {
        double d = (double)x[i] - y[i];
        lane[l] += d * d;
    }
    for (size_t l = 0; l < 16; l++)
        sum += lane[l];
    return sum;
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

/* A level of a batch.  What kind of loop it is, is its step: one of image i, with two
 * parts of the scratch, g (n) and ws.  It returns ||A(x) - y||^2; a value that is not
 * finite ends the loop, any other is in sqnorm[i] at the next step. */
typedef struct DSG_NAME(level) DSG_NAME(level);
struct DSG_NAME(level) {
    double (*step)(const DSG_NAME(level) *k, size_t i, size_t step, dsg_real *g,
                   void *ws);
    dsg_real *x;
    double *sqnorm;
    const dsg_real *x0hat, *y;
    size_t n, m; /* sizes of an image and of a measurement */
    const DSG_NAME(dsg_op) *op;
    const DSG_NAME(dsg_projector) *projector; /* or NULL */
    DSG_NAME(normals) normals;
    const dsg_langevin_options *options;

    dsg_real *velocity; /* HMC */
    double momentum;
    double *accepted; /* Metropolis-Hastings */
    const double *uniforms;
};

static dsg_status DSG_NAME(level_item)(void *arg, size_t i, void *scratch)
{
    const DSG_NAME(level) *k = arg;
    dsg_real *g = scratch;
    void *ws = (char *)scratch + dsg_align_up(k->n * sizeof *g);

    double sqnorm = NAN;
    for (size_t step = 0; step < k->options->steps; step++) {
        sqnorm = k->step(k, i, step, g, ws);
        if (!isfinite(sqnorm))
            break;
        k->sqnorm[i] = sqnorm;
    }
    if (!isfinite(sqnorm) || !DSG_NAME(all_finite)(k->x + i * k->n, k->n))
        k->sqnorm[i] = NAN;
    return DSG_OK;
}

/* Checks what the loops have in common, and runs one.  extra: bytes of ws beside the
 * operator's and the projector's workspaces, which are never in use together. */
static dsg_status DSG_NAME(run_level)(DSG_NAME(level) *k, size_t b, size_t extra)
{
    const dsg_langevin_options *o = k->options;
    if (o->steps == 0 || !(o->eta > 0.0) || !isfinite(o->eta) ||
        !isfinite(o->likelihood) || !isfinite(o->prior))
        return DSG_EVALUE;

    size_t ws = DSG_NAME(dsg_op_workspace)(k->op);
    if (k->projector) {
        dsg_shape in = k->op->in, s = DSG_NAME(dsg_projector_shape)(k->projector);
        if (s.c != in.c || s.h != in.h || s.w != in.w ||
            DSG_NAME(dsg_projector_batch)(k->projector) != b)
            return DSG_ESHAPE;
        if (!DSG_NAME(dsg_projector_ranks)(k->projector))
            return DSG_ENOTREADY;
        size_t own = DSG_NAME(dsg_projector_workspace)(k->projector);
        ws = own > ws ? own : ws;
    }
    if (b == 0)
        return DSG_OK;
    k->n = k->normals.n = dsg_shape_size(k->op->in);
    k->m = dsg_shape_size(k->op->out);
    k->normals.b = b;
    dsg_status err = DSG_NAME(normals_check)(&k->normals, o->steps);
    if (err)
        return err;
    size_t scratch = dsg_align_up(k->n * sizeof(dsg_real)) + extra + ws;
    return dsg_parallel_for(b, scratch, DSG_NAME(level_item), k);
}

/* g = P(likelihood J^T (A(x) - y) + prior (x - x0hat)); returns ||A(x) - y||^2, and
 * leaves g unfinished when that is not finite. */
static double DSG_NAME(gradient)(const DSG_NAME(level) *k, size_t i, dsg_real *g,
                                 void *ws)
{
    const dsg_langevin_options *o = k->options;
    const dsg_real *x = k->x + i * k->n, *x0hat = k->x0hat + i * k->n;
    double sqnorm =
        DSG_NAME(dsg_op_residual_gradient)(k->op, g, x, k->y + i * k->m, ws);
    if (!isfinite(sqnorm))
        return sqnorm;
    DSG_NAME(posterior)
    (g, x, x0hat, k->n, (dsg_real)o->likelihood, (dsg_real)o->prior);
    if (k->projector)
        DSG_NAME(dsg_projector_apply)(k->projector, i, g, ws);
    return sqnorm;
}

static double DSG_NAME(langevin_step)(const DSG_NAME(level) *k, size_t i, size_t step,
                                      dsg_real *g, void *ws)
{
    double sqnorm = DSG_NAME(gradient)(k, i, g, ws);
    if (!isfinite(sqnorm))
        return sqnorm;
    double eta = k->options->eta;
    dsg_real *x = k->x + i * k->n, buffer[DSG_NOISE_BLOCK];
    for (size_t at = 0, count; (count = block_count(k->n, at)); at += count) {
        const dsg_real *noise =
            DSG_NAME(normals_block)(&k->normals, i, step, at, count, buffer);
        DSG_NAME(noisy_step)
        (x + at, g + at, noise, count, (dsg_real)eta, (dsg_real)sqrt(2.0 * eta));
    }
    return sqnorm;
}

static double DSG_NAME(hmc_step)(const DSG_NAME(level) *k, size_t i, size_t step,
                                 dsg_real *g, void *ws)
{
    double sqnorm = DSG_NAME(gradient)(k, i, g, ws);
    if (!isfinite(sqnorm))
        return sqnorm;
    dsg_real root = (dsg_real)sqrt(k->options->eta);
    dsg_real amplitude = (dsg_real)sqrt(2.0 * (1.0 - k->momentum));
    dsg_real *x = k->x + i * k->n, *v = k->velocity + i * k->n;
    dsg_real buffer[DSG_NOISE_BLOCK];
    for (size_t at = 0, count; (count = block_count(k->n, at)); at += count) {
        const dsg_real *noise =
            DSG_NAME(normals_block)(&k->normals, i, step, at, count, buffer);
        DSG_NAME(leap)
        (x + at, v + at, g + at, noise, count, (dsg_real)k->momentum, root, amplitude);
    }
    return sqnorm;
}

/* ||A(x) - y||^2.  ws: the measurement, then the operator's. */
static double DSG_NAME(misfit)(const DSG_NAME(level) *k, size_t i, const dsg_real *x,
                               void *ws)
{
    dsg_real *measured = ws;
    char *rest = (char *)ws + dsg_align_up(k->m * sizeof *measured);
    DSG_NAME(dsg_op_forward)(k->op, measured, x, rest);
    return DSG_NAME(distance)(measured, k->y + i * k->m, k->m);
}

static double DSG_NAME(mh_step)(const DSG_NAME(level) *k, size_t i, size_t step,
                                dsg_real *proposal, void *ws)
{
    const dsg_langevin_options *o = k->options;
    dsg_real *x = k->x + i * k->n, buffer[DSG_NOISE_BLOCK];
    const dsg_real *x0hat = k->x0hat + i * k->n;
    double before = step ? k->sqnorm[i] : DSG_NAME(misfit)(k, i, x, ws);
    if (step == 0)
        k->accepted[i] = 0.0;
    if (!isfinite(before))
        return before;

    for (size_t at = 0, count; (count = block_count(k->n, at)); at += count) {
        const dsg_real *noise =
            DSG_NAME(normals_block)(&k->normals, i, step, at, count, buffer);
        DSG_NAME(propose)(proposal + at, x + at, noise, count, (dsg_real)sqrt(o->eta));
    }
    double after = DSG_NAME(misfit)(k, i, proposal, ws);
    double gain = o->likelihood / 2 * (before - after) +
                  o->prior / 2 *
                      (DSG_NAME(distance)(x, x0hat, k->n) -
                       DSG_NAME(distance)(proposal, x0hat, k->n));
    double u = k->uniforms ? k->uniforms[step * k->normals.b + i]
                           : dsg_uniform(noise_key(k->normals.noise, i, 2 * step + 1));
    if (!(log(u) < gain))
        return before;
    memcpy(x, proposal, k->n * sizeof *x);
    k->accepted[i]++;
    return after;
}

dsg_status DSG_NAME(dsg_langevin)(dsg_real *x, double *sqnorm, const dsg_real *x0hat,
                                  const dsg_real *y, size_t b,
                                  const DSG_NAME(dsg_op) *op,
                                  const DSG_NAME(dsg_projector) *projector,
                                  const dsg_noise *noise, const dsg_real *recorded,
                                  const dsg_langevin_options *options)
{
    DSG_NAME(level)
    k = {.step = DSG_NAME(langevin_step),
         .x = x,
         .sqnorm = sqnorm,
         .x0hat = x0hat,
         .y = y,
         .op = op,
         .projector = projector,
         .normals = {.noise = noise, .recorded = recorded, .draws = 1},
         .options = options};
    return DSG_NAME(run_level)(&k, b, 0);
}

dsg_status DSG_NAME(dsg_hmc)(dsg_real *x, dsg_real *velocity, double *sqnorm,
                             const dsg_real *x0hat, const dsg_real *y, size_t b,
                             const DSG_NAME(dsg_op) *op,
                             const DSG_NAME(dsg_projector) *projector,
                             const dsg_noise *noise, const dsg_real *recorded,
                             const dsg_langevin_options *options, double momentum)
{
    if (!(momentum >= 0.0 && momentum <= 1.0))
        return DSG_EVALUE;
    DSG_NAME(level)
    k = {.step = DSG_NAME(hmc_step),
         .x = x,
         .velocity = velocity,
         .sqnorm = sqnorm,
         .x0hat = x0hat,
         .y = y,
         .op = op,
         .projector = projector,
         .normals = {.noise = noise, .recorded = recorded, .draws = 1},
         .options = options,
         .momentum = momentum};
    return DSG_NAME(run_level)(&k, b, 0);
}

dsg_status DSG_NAME(dsg_mh)(dsg_real *x, double *sqnorm, double *accepted,
                            const dsg_real *x0hat, const dsg_real *y, size_t b,
                            const DSG_NAME(dsg_op) *op, const dsg_noise *noise,
                            const dsg_real *recorded, const double *uniforms,
                            const dsg_langevin_options *options)
{
    if (b > 0 && (recorded == NULL) != (uniforms == NULL))
        return DSG_EVALUE;
    DSG_NAME(level)
    k = {.step = DSG_NAME(mh_step),
         .x = x,
         .sqnorm = sqnorm,
         .accepted = accepted,
         .x0hat = x0hat,
         .y = y,
         .op = op,
         .normals = {.noise = noise, .recorded = recorded, .draws = 2},
         .uniforms = uniforms,
         .options = options};
    size_t m = dsg_shape_size(op->out);
    return DSG_NAME(run_level)(&k, b, dsg_align_up(m * sizeof(dsg_real)));
}
