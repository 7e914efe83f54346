/* The adaptive-rank projector.  Here is what is computed in double whatever the
 * precision of the images; project.inc.h converts, stores and applies. */
#include "dsg/project.h"

#include <assert.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "dsg/lapack.h"
#include "dsg/mem.h"
#include "dsg/threads.h"
#include "dsg/tridiagonal.h"
#include "shape.h"
#include "sums.h"

/* ---- rank -------------------------------------------------------------------- */

/* Smallest r with lambda_1 + ... + lambda_r >= energy * sum, for k eigenvalues in
 * ascending order, all >= 0 and not all 0.  A sum that misses by rounding has arrived:
 * without the slack, equal singular values would be counted by chance. */
static size_t
rank_for_energy(const double *lambda, size_t k, double energy)
{
    double total = 0.0;
    for (size_t j = k; j-- > 0;)
        total += lambda[j];

    double goal = energy * total * (1.0 - 4.0 * DBL_EPSILON * (double)k);
    double kept = lambda[k - 1];
    size_t r = 1;
    while (r < k && kept < goal) {
        kept += lambda[k - 1 - r];
        r++;
    }
    return r;
}

/* sum_{j <= r} lambda_j / sum lambda; 1 for r = k. */
static double
kept_energy(const double *lambda, size_t k, size_t r)
{
    double kept = 0.0, rest = 0.0;
    for (size_t j = k; j-- > k - r;)
        kept += lambda[j];
    for (size_t j = k - r; j-- > 0;)
        rest += lambda[j];
    return kept / (kept + rest);
}

/* Sum of float by halves, 128 entries at a time in eight lanes: numpy's order of
 * summation, which the published code divides by. */
static float
pairwise_sum(const float *a, size_t n)
{
    if (n > 128) {
        size_t half = n / 2;
        half -= half % 8;
        return pairwise_sum(a, half) + pairwise_sum(a + half, n - half);
    }
    size_t i = 0;
    float sum = 0.0f;
    if (n >= 8) {
        float lane[8];
        for (size_t l = 0; l < 8; l++)
            lane[l] = a[l];
        for (i = 8; i + 8 <= n; i += 8)
            for (size_t l = 0; l < 8; l++)
                lane[l] += a[i + l];
        sum = ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
              ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    }
    for (; i < n; i++)
        sum += a[i];
    return sum;
}

/* The shared rank of the published code from the n = c * k squared singular values of
 * an image, channel after channel, each descending.  Its list of arrays holds one
 * array, so that the running sum crosses the channels; the position is divided by 3. */
static size_t
official_rank(const float *square, size_t n, size_t k, double energy)
{
    float total = pairwise_sum(square, n);
    if (!(total > 0.0f))
        return 0;
    float sum = 0.0f;
    size_t position = n; /* where rounding keeps the last ratio below energy */
    for (size_t i = 0; i < n; i++) {
        sum += square[i];
        if ((double)(sum / total) >= energy) {
            position = i + 1;
            break;
        }
    }
    size_t r = position / 3;
    return r < k ? r : k;
}

/* ---- factors of one channel --------------------------------------------------- */

/* Exponent of a channel without a value to scale. */
#define ZERO_CHANNEL INT_MIN

/* What a thread needs for one image.  The channel's matrix M is (k, length) with
 * k <= length: the state, or its transpose if the Gram matrix is to be the right
 * side's. */
typedef struct scratch {
    double *m;     /* k * length */
    double *own;   /* k * k: rows are vectors of the short side */
    double *other; /* k * length: of the long side */
    double *gram;  /* k * k */
    double *s;     /* k */
    double *spare; /* k */
    float *square; /* c * k */
    void *work;    /* LAPACK's */
    /* Of every channel, since a shared rank waits for all of them. */
    double *reflect; /* c * k * k: Q of the tridiagonal form */
    double *tau;     /* c * k */
    double *d, *e;   /* c * k: the tridiagonal form */
    double *lambda;  /* c * k: eigenvalues, ascending */
    double *energy;  /* c: squared norm on the image's scale */
    int *exponent;   /* c: M was multiplied by 2^-exponent */
} scratch;

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t
smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Bytes of the scratch of an image and, unless base is NULL, its parts.  False when a
 * size overflows or is beyond LAPACK. */
static bool
lay_out(scratch *s, void *base, size_t *bytes, size_t c, size_t k, size_t length)
{
    size_t work = dsg_eigh_workspace(k);
    work = larger(work, dsg_sytrd_workspace(k));
    work = larger(work, dsg_svd_workspace(k, length));
    work = larger(work, dsg_tridiagonal_values_workspace(k));
    work = larger(work, dsg_tridiagonal_vectors_workspace(k));

    size_t ck, kk, kl, ckk;
    if (work == SIZE_MAX || !dsg_mul(c, k, &ck) || !dsg_mul(k, k, &kk) ||
        !dsg_mul(k, length, &kl) || !dsg_mul(c, kk, &ckk))
        return false;

    const struct {
        void *part; /* the pointer to set, whatever its type */
        size_t count, size;
    } parts[] = {
        {&s->m, kl, sizeof *s->m},
        {&s->own, kk, sizeof *s->own},
        {&s->other, kl, sizeof *s->other},
        {&s->gram, kk, sizeof *s->gram},
        {&s->s, k, sizeof *s->s},
        {&s->spare, k, sizeof *s->spare},
        {&s->square, ck, sizeof *s->square},
        {&s->work, work, 1},
        {&s->reflect, ckk, sizeof *s->reflect},
        {&s->tau, ck, sizeof *s->tau},
        {&s->d, ck, sizeof *s->d},
        {&s->e, ck, sizeof *s->e},
        {&s->lambda, ck, sizeof *s->lambda},
        {&s->energy, c, sizeof *s->energy},
        {&s->exponent, c, sizeof *s->exponent},
    };
    size_t end = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t size;
        if (!dsg_mul(parts[i].count, parts[i].size, &size) ||
            size > PTRDIFF_MAX - DSG_ALIGN - end)
            return false;
        void *at = base ? (char *)base + end : NULL;
        memcpy(parts[i].part, &at, sizeof at);
        end += dsg_align_up(size);
    }
    *bytes = end;
    return true;
}

/* Ranks of the channels of one image from their eigenvalues. */
static void
find_ranks(size_t *ranks, const scratch *s, const dsg_project_options *options,
           size_t channels, size_t k, int exponent)
{
    if (options->rule == DSG_RANK_OFFICIAL) {
        for (size_t c = 0; c < channels; c++) {
            bool zero = s->exponent[c] == ZERO_CHANNEL;
            double scale = zero ? 0.0 : ldexp(1.0, s->exponent[c] - exponent);
            for (size_t j = 0; j < k; j++) {
                double root = zero ? 0.0 : sqrt(s->lambda[c * k + k - 1 - j]);
                float value = (float)(scale * root);
                s->square[c * k + j] = value * value;
            }
        }
        size_t r = official_rank(s->square, channels * k, k, options->energy);
        for (size_t c = 0; c < channels; c++)
            ranks[c] = r;
        return;
    }

    size_t sum = 0;
    for (size_t c = 0; c < channels; c++) {
        bool zero = s->exponent[c] == ZERO_CHANNEL;
        ranks[c] = zero ? 0 : rank_for_energy(s->lambda + c * k, k, options->energy);
        sum += ranks[c];
    }
    if (options->rule == DSG_RANK_MEAN)
        for (size_t c = 0; c < channels; c++)
            ranks[c] = sum / channels;
}

/* Which half of a side of length n to keep at rank r, and how many rows that are; none
 * when the side is the identity, as where it is not wanted. */
static size_t
choose_half(bool *complement, size_t n, size_t k, size_t r, bool wanted)
{
    *complement = !wanted || r >= n || (n == k && 2 * r > k);
    return !*complement ? r : !wanted || r >= n ? 0 : k - r;
}

/* Eigenvalues of M M^T for channel c, and what its vectors will be made from. */
static dsg_status
find_values(scratch *s, size_t c, size_t k, size_t length)
{
    double *a = s->reflect + c * k * k, *lambda = s->lambda + c * k;
    double *d = s->d + c * k, *e = s->e + c * k;
    dsg_gram_f64(a, s->m, k, length);
    dsg_status err = dsg_sytrd_f64(a, d, e, s->tau + c * k, k, s->work);
    if (err)
        return err;
    if (!dsg_tridiagonal_values(lambda, d, e, k, s->work)) {
        memcpy(lambda, d, k * sizeof(double));
        memcpy(s->spare, e, k * sizeof(double));
        err = dsg_sterf_f64(lambda, s->spare, k);
    }
    for (size_t j = 0; j < k; j++)
        lambda[j] = fmax(lambda[j], 0.0); /* rounding */
    return err;
}

/* Rows 0..p-1 of own = eigenvectors number from .. from + p - 1 of M M^T, orthonormal
 * to tol.  Where eigenvalues are too close for vectors found one by one, by divide and
 * conquer. */
static dsg_status
find_own(scratch *s, size_t c, size_t from, size_t p, size_t k, size_t length,
         double tol)
{
    dsg_tridiagonal_vectors(s->own, s->d + c * k, s->e + c * k,
                            s->lambda + c * k + from, p, k, s->work);
    if (dsg_orthonormalise_f64(s->own, p, k, tol, s->gram) == DSG_OK)
        return dsg_ormtr_f64(s->own, p, s->reflect + c * k * k, s->tau + c * k, k,
                             s->work);

    dsg_gram_f64(s->own, s->m, k, length);
    dsg_status err = dsg_eigh_f64(s->own, s->spare, k, s->work);
    if (!err)
        memmove(s->own, s->own + from * k, p * k * sizeof(double));
    return err;
}

/* Rows 0..p-1 of other = the same vectors of M^T M, from those in own: M^T u / |M^T u|,
 * which are orthogonal as far as rounding in u, eps lambda_1, is small against their
 * lambda.  DSG_ENOCONV when it is not. */
static dsg_status
find_other(scratch *s, size_t p, size_t k, size_t length, double tol)
{
    dsg_gemm_f64(s->other, length, s->own, k, false, s->m, length, false, p, length, k,
                 1.0, 0.0);
    for (size_t j = 0; j < p; j++) {
        double *row = s->other + j * length, sum = 0.0;
        for (size_t i = 0; i < length; i++)
            sum += row[i] * row[i];
        double scale = 1.0 / sqrt(sum);
        for (size_t i = 0; i < length; i++)
            row[i] *= scale;
    }
    return dsg_orthonormalise_f64(s->other, p, length, tol, s->gram);
}

/* All vectors of both sides from the SVD: row j of own and of other belongs to the j-th
 * largest singular value.  Destroys m. */
static dsg_status
find_by_svd(scratch *s, size_t k, size_t length)
{
    dsg_status err = dsg_svd_f64(s->gram, s->s, s->other, s->m, k, length, s->work);
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++)
            s->own[j * k + i] = s->gram[i * k + j];
    return err;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "project.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "project.inc.h"
#undef DSG_PRECISION
