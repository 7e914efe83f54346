/* The projector for one precision. */

/* Smallest sqrt(lambda_min lambda_r) / lambda_1 for vectors of the other side by
 * M^T u / s: rounding leaves a part of about eps times the reciprocal in them that
 * belongs to the vectors on the other side of the cut.  The goals are 2e-7, the
 * rounding of what is stored, and 2e-11. */
#if DSG_PRECISION == 32
#define SMALLEST_RATIO 1e-9
#define ORTHOGONALITY 1e-9 /* far below the rounding of what is stored */
#else
#define SMALLEST_RATIO 1e-5
#define ORTHOGONALITY DBL_EPSILON
#endif

/* One side of one channel: P = B^T B, or I - B^T B, with the p rows of B. */
typedef struct DSG_NAME(factor) {
    dsg_real *rows; /* p * length of the side */
    size_t p;
    bool complement;
} DSG_NAME(factor);

struct DSG_NAME(dsg_projector) {
    size_t b;
    dsg_shape shape;
    size_t rows[2]; /* room for so many rows on the left and on the right */
    size_t scratch; /* bytes a thread needs to prepare */
    bool ready;
    dsg_real *storage;
    DSG_NAME(factor) *factors; /* (b, c, 2), left and right */
    size_t *ranks;             /* (b, c) */
    double *kept;              /* (b, c) */
};

void DSG_NAME(dsg_projector_destroy)(DSG_NAME(dsg_projector) *p)
{
    if (!p)
        return;
    dsg_free(p->kept);
    dsg_free(p->ranks);
    dsg_free(p->factors);
    dsg_free(p->storage);
    dsg_free(p);
}

dsg_status DSG_NAME(dsg_projector_create)(DSG_NAME(dsg_projector) **out, size_t b,
                                          dsg_shape shape)
{
    size_t c = shape.c, h = shape.h, w = shape.w;
    if (!dsg_shape_valid(shape, sizeof(double)))
        return DSG_ESHAPE;

    /* The smaller half of a side, but all k of the long side, of which the thin SVD
     * has no complement. */
    size_t k = smaller(h, w), length = larger(h, w), scratch_bytes;
    scratch unplaced;
    size_t rows[2] = {h > w ? k : k / 2, w > h ? k : k / 2};
    size_t left, right, channels, total;
    if (!lay_out(&unplaced, NULL, &scratch_bytes, c, k, length) ||
        !dsg_mul(rows[0], h, &left) || !dsg_mul(rows[1], w, &right) ||
        !dsg_mul(b, c, &channels) || left > SIZE_MAX - right ||
        !dsg_mul(channels, left + right, &total) || channels > SIZE_MAX / 2)
        return DSG_ESHAPE;

    DSG_NAME(dsg_projector) *p = dsg_calloc(1, sizeof *p);
    if (!p)
        return DSG_ENOMEM;
    p->b = b;
    p->shape = shape;
    p->rows[0] = rows[0];
    p->rows[1] = rows[1];
    p->scratch = scratch_bytes;
    p->storage = dsg_alloc(total, sizeof *p->storage);
    p->factors = dsg_alloc(2 * channels, sizeof *p->factors);
    p->ranks = dsg_calloc(channels, sizeof *p->ranks);
    p->kept = dsg_calloc(channels, sizeof *p->kept);
    if (!p->storage || !p->factors || !p->ranks || !p->kept) {
        DSG_NAME(dsg_projector_destroy)(p);
        return DSG_ENOMEM;
    }

    dsg_real *next = p->storage;
    for (size_t i = 0; i < channels; i++) {
        p->factors[2 * i].rows = next;
        p->factors[2 * i + 1].rows = next + left;
        next += left + right;
    }
    *out = p;
    return DSG_OK;
}

size_t DSG_NAME(dsg_projector_batch)(const DSG_NAME(dsg_projector) *p)
{
    return p->b;
}

dsg_shape DSG_NAME(dsg_projector_shape)(const DSG_NAME(dsg_projector) *p)
{
    return p->shape;
}

const size_t *DSG_NAME(dsg_projector_ranks)(const DSG_NAME(dsg_projector) *p)
{
    return p->ready ? p->ranks : NULL;
}

const double *DSG_NAME(dsg_projector_kept)(const DSG_NAME(dsg_projector) *p)
{
    return p->ready ? p->kept : NULL;
}

/* ---- preparing one image ------------------------------------------------------ */

/* *largest = max |x|; false for NaN or Inf. */
DSG_CLONES static bool DSG_NAME(scan)(double *largest, const dsg_real *restrict x,
                                      size_t n)
{
    dsg_real lane[16] = {0};
    int bad[16] = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++) {
            dsg_real v = x[i + l] < 0 ? -x[i + l] : x[i + l];
            bad[l] |= !(v - v == 0);
            lane[l] = v > lane[l] ? v : lane[l];
        }
    for (size_t l = 0; i < n; i++, l++) {
        dsg_real v = x[i] < 0 ? -x[i] : x[i];
        bad[l] |= !(v - v == 0);
        lane[l] = v > lane[l] ? v : lane[l];
    }
    bool good = true;
    *largest = 0.0;
    for (size_t l = 0; l < 16; l++) {
        good = good && !bad[l];
        *largest = lane[l] > *largest ? (double)lane[l] : *largest;
    }
    return good;
}

/* m (k, length) = 2^-exponent * z (h, w), transposed or not.  The power of two keeps
 * squares from over- and underflowing and changes nothing else. */
static void DSG_NAME(load)(double *restrict m, const dsg_real *restrict z, size_t h,
                           size_t w, bool transposed, int exponent)
{
    double scale = ldexp(1.0, -exponent);
    if (!transposed)
        for (size_t i = 0; i < h * w; i++)
            m[i] = scale * z[i];
    else
        for (size_t j = 0; j < w; j++)
            for (size_t i = 0; i < h; i++)
                m[j * h + i] = scale * z[i * w + j];
}

static void DSG_NAME(store)(DSG_NAME(factor) *f, const double *restrict rows,
                            size_t length)
{
    for (size_t i = 0; i < f->p * length; i++)
        f->rows[i] = (dsg_real)rows[i];
}

typedef struct DSG_NAME(preparation) {
    DSG_NAME(dsg_projector) *p;
    const dsg_real *state;
    const dsg_project_options *options;
    size_t k, length;
    bool transposed; /* the short side, whose Gram matrix is used, is the right one */
} DSG_NAME(preparation);

/* True when the running sum of the official rule reaches `energy` only behind the third
 * channel, whatever the rounding of its float sums: then its position is above 3 k. */
static bool DSG_NAME(behind_third_channel)(scratch *s, const dsg_real *z,
                                           dsg_shape shape, size_t k, int exponent,
                                           double energy)
{
    if (shape.c <= 3)
        return false;
    double total = 0.0, first = 0.0, scale = ldexp(1.0, -exponent);
    for (size_t c = 0; c < shape.c; c++) {
        size_t n = shape.h * shape.w;
        s->energy[c] = DSG_NAME(dsg_sum_of_squares)(z + c * n, n, scale);
        total += s->energy[c];
        if (c == 2)
            first = total;
    }
    double rounding = 2.0 * FLT_EPSILON * (double)(shape.c * k);
    return first * (1.0 + rounding) < energy * total;
}

/* The rows of both factors of channel c, whose halves are chosen.  DSG_ENOCONV when
 * rounding makes vectors from M M^T too poor. */
static dsg_status DSG_NAME(factor_by_gram)(DSG_NAME(factor) *own,
                                           DSG_NAME(factor) *other, scratch *s,
                                           size_t c, size_t r, size_t k, size_t length)
{
    const double *lambda = s->lambda + c * k;
    const bool halves_differ =
        own->p && other->p && own->complement != other->complement;
    if (other->p) {
        double smallest = lambda[other->complement ? 0 : k - r];
        if (!(sqrt(smallest) * sqrt(lambda[k - r]) > SMALLEST_RATIO * lambda[k - 1]))
            return DSG_ENOCONV;
    }
    /* Two sets found apart are each other's complement only if the cut is clear. */
    if (halves_differ &&
        !(lambda[k - r] - lambda[k - r - 1] > SMALLEST_RATIO * lambda[k - 1]))
        return DSG_ENOCONV;

    dsg_status err = DSG_OK;
    if (own->p) {
        err = find_own(s, c, own->complement ? 0 : k - r, own->p, k, length,
                       ORTHOGONALITY);
        if (err)
            return err;
        DSG_NAME(store)(own, s->own, k);
    }
    if (other->p) {
        if (!own->p || halves_differ)
            err = find_own(s, c, other->complement ? 0 : k - r, other->p, k, length,
                           ORTHOGONALITY);
        if (!err)
            err = find_other(s, other->p, k, length, ORTHOGONALITY);
        if (!err)
            DSG_NAME(store)(other, s->other, length);
    }
    return err;
}

static dsg_status DSG_NAME(factor_by_svd)(DSG_NAME(factor) *own,
                                          DSG_NAME(factor) *other, scratch *s, size_t r,
                                          size_t k, size_t length)
{
    dsg_status err = find_by_svd(s, k, length);
    if (err)
        return err;
    DSG_NAME(store)(own, s->own + (own->complement ? r * k : 0), k);
    DSG_NAME(store)(other, s->other + (other->complement ? r * length : 0), length);
    return DSG_OK;
}

/* Work item: the factors of image i. */
static dsg_status DSG_NAME(prepare_image)(void *arg, size_t i, void *base)
{
    const DSG_NAME(preparation) *job = arg;
    const dsg_project_options *options = job->options;
    const dsg_shape shape = job->p->shape;
    const size_t k = job->k, length = job->length, n = shape.h * shape.w;
    const dsg_real *z = job->state + i * shape.c * n;
    DSG_NAME(factor) *factors = job->p->factors + i * shape.c * 2;
    size_t *ranks = job->p->ranks + i * shape.c;
    double *kept = job->p->kept + i * shape.c;
    const bool left = options->sides & DSG_LEFT, right = options->sides & DSG_RIGHT;

    scratch s;
    size_t bytes;
    bool fits = lay_out(&s, base, &bytes, shape.c, k, length);
    assert(fits);
    (void)fits;

    /* Scale of every channel and of the image. */
    int exponent = ZERO_CHANNEL;
    for (size_t c = 0; c < shape.c; c++) {
        double largest;
        if (!DSG_NAME(scan)(&largest, z + c * n, n))
            return DSG_ENONFINITE;
        s.exponent[c] = ZERO_CHANNEL;
        if (largest > 0.0) {
            frexp(largest, &s.exponent[c]);
            /* 2^-exponent itself must be a normal number. */
            s.exponent[c] = s.exponent[c] > 1022    ? 1022
                            : s.exponent[c] < -1022 ? -1022
                                                    : s.exponent[c];
        }
        exponent = s.exponent[c] > exponent ? s.exponent[c] : exponent;
    }

    /* The rank, where it needs no singular values: full, or given. */
    const bool official = options->rule == DSG_RANK_OFFICIAL;
    bool known = exponent == ZERO_CHANNEL;
    size_t rank = 0;
    if (options->rule == DSG_RANK_FIXED) {
        known = true;
        rank = smaller(options->fixed_rank, k);
    } else if (options->energy == 1.0 ||
               (!known && official &&
                DSG_NAME(behind_third_channel)(&s, z, shape, k, exponent,
                                               options->energy))) {
        known = true;
        rank = k;
    }

    /* Full rank on sides of length k is the identity: nothing to decompose. */
    const bool identity =
        known && rank == k && (!left || shape.h == k) && (!right || shape.w == k);
    for (size_t c = 0; c < shape.c && !identity; c++) {
        if (s.exponent[c] == ZERO_CHANNEL)
            continue;
        DSG_NAME(load)(s.m, z + c * n, shape.h, shape.w, job->transposed,
                       s.exponent[c]);
        dsg_status err = find_values(&s, c, k, length);
        if (err)
            return err;
    }

    if (known)
        for (size_t c = 0; c < shape.c; c++)
            ranks[c] = rank;
    else
        find_ranks(ranks, &s, options, shape.c, k, exponent);

    for (size_t c = 0; c < shape.c; c++) {
        DSG_NAME(factor) *l = &factors[2 * c], *r = l + 1;
        const bool zero = s.exponent[c] == ZERO_CHANNEL;
        if (zero && !official)
            ranks[c] = 0;

        /* A zero channel has no directions to keep to: it is left alone, unless the
         * shared rank says that nothing is kept. */
        const bool alone = zero && !(official && ranks[c] == 0);
        l->p = choose_half(&l->complement, shape.h, k, ranks[c], left && !alone);
        r->p = choose_half(&r->complement, shape.w, k, ranks[c], right && !alone);
        kept[c] =
            zero || ranks[c] == k ? 1.0 : kept_energy(s.lambda + c * k, k, ranks[c]);
        if (l->p == 0 && r->p == 0)
            continue;

        DSG_NAME(factor) *own = job->transposed ? r : l,
                         *other = job->transposed ? l : r;
        DSG_NAME(load)(s.m, z + c * n, shape.h, shape.w, job->transposed,
                       s.exponent[c]);
        dsg_status err =
            DSG_NAME(factor_by_gram)(own, other, &s, c, ranks[c], k, length);
        if (err == DSG_ENOCONV)
            err = DSG_NAME(factor_by_svd)(own, other, &s, ranks[c], k, length);
        if (err)
            return err;
    }
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_projector_prepare)(DSG_NAME(dsg_projector) *p,
                                           const dsg_real *state,
                                           const dsg_project_options *options)
{
    p->ready = false;
    if (options->sides < DSG_LEFT || options->sides > DSG_BOTH ||
        (unsigned)options->rule > DSG_RANK_FIXED)
        return DSG_EVALUE;
    if (options->rule == DSG_RANK_FIXED
            ? options->fixed_rank == 0
            : !(options->energy > 0.0 && options->energy <= 1.0))
        return DSG_EVALUE;

    const size_t h = p->shape.h, w = p->shape.w;
    DSG_NAME(preparation)
    job = {
        .p = p,
        .state = state,
        .options = options,
        .k = smaller(h, w),
        .length = larger(h, w),
        .transposed = h > w || (h == w && options->sides == DSG_RIGHT),
    };
    dsg_status err = dsg_parallel_for(p->b, p->scratch, DSG_NAME(prepare_image), &job);
    p->ready = err == DSG_OK;
    return err;
}

/* ---- applying ------------------------------------------------------------------ */

/* Reals for B G on the left; those for G B^T on the right lie behind. */
static size_t DSG_NAME(left_reals)(const DSG_NAME(dsg_projector) *p)
{
    return dsg_align_up(p->rows[0] * p->shape.w * sizeof(dsg_real)) / sizeof(dsg_real);
}

size_t DSG_NAME(dsg_projector_workspace)(const DSG_NAME(dsg_projector) *p)
{
    return (DSG_NAME(left_reals)(p) + p->rows[1] * p->shape.h) * sizeof(dsg_real);
}

/* g (m, w) = g B^T B, or g - g B^T B. */
static void DSG_NAME(apply_right)(dsg_real *restrict g, const DSG_NAME(factor) *f,
                                  size_t m, size_t w, dsg_real *restrict t)
{
    if (f->p == 0)
        return;
    DSG_NAME(dsg_gemm)(t, f->p, g, w, false, f->rows, w, true, m, f->p, w, 1, 0);
    DSG_NAME(dsg_gemm)
    (g, w, t, f->p, false, f->rows, w, false, m, w, f->p, f->complement ? -1 : 1,
     f->complement ? 1 : 0);
}

static void DSG_NAME(apply_channel)(dsg_real *restrict g, const DSG_NAME(factor) *left,
                                    const DSG_NAME(factor) *right, size_t h, size_t w,
                                    dsg_real *restrict tl, dsg_real *restrict tr)
{
    if ((left->p == 0 && !left->complement) || (right->p == 0 && !right->complement)) {
        memset(g, 0, h * w * sizeof *g); /* rank 0 */
        return;
    }
    if (left->p) {
        DSG_NAME(dsg_gemm)
        (tl, w, left->rows, h, false, g, w, false, left->p, w, h, 1, 0);
    }
    if (left->complement) {
        if (left->p) {
            DSG_NAME(dsg_gemm)
            (g, w, left->rows, h, true, tl, w, false, h, w, left->p, -1, 1);
        }
        DSG_NAME(apply_right)(g, right, h, w, tr);
    } else {
        /* The right side on the r rows of B G is cheaper than on all of B^T B G. */
        DSG_NAME(apply_right)(tl, right, left->p, w, tr);
        DSG_NAME(dsg_gemm)
        (g, w, left->rows, h, true, tl, w, false, h, w, left->p, 1, 0);
    }
}

void DSG_NAME(dsg_projector_apply)(const DSG_NAME(dsg_projector) *p, size_t i,
                                   dsg_real *restrict g, void *ws)
{
    const size_t n = p->shape.h * p->shape.w;
    const DSG_NAME(factor) *f = p->factors + i * p->shape.c * 2;
    dsg_real *tl = ws, *tr = tl + DSG_NAME(left_reals)(p);
    for (size_t c = 0; c < p->shape.c; c++) {
        DSG_NAME(apply_channel)
        (g + c * n, &f[2 * c], &f[2 * c + 1], p->shape.h, p->shape.w, tl, tr);
    }
}

typedef struct DSG_NAME(application) {
    const DSG_NAME(dsg_projector) *p;
    dsg_real *g;
} DSG_NAME(application);

static dsg_status DSG_NAME(apply_image)(void *arg, size_t i, void *ws)
{
    const DSG_NAME(application) *job = arg;
    size_t n = dsg_shape_size(job->p->shape);
    DSG_NAME(dsg_projector_apply)(job->p, i, job->g + i * n, ws);
    return DSG_OK;
}

dsg_status DSG_NAME(dsg_projector_apply_batch)(const DSG_NAME(dsg_projector) *p,
                                               dsg_real *g)
{
    if (!p->ready)
        return DSG_ENOTREADY;
    DSG_NAME(application) job = {.p = p, .g = g};
    return dsg_parallel_for(p->b, DSG_NAME(dsg_projector_workspace)(p),
                            DSG_NAME(apply_image), &job);
}

#undef SMALLEST_RATIO
#undef ORTHOGONALITY
