#include "dsg/rng.h"

#include <math.h>
#include <string.h>

#include "dsg/real.h"

/* Four normals come from one Philox counter. */
#define COUNTERS (DSG_NOISE_BLOCK / 4)

/* Four random words for each of COUNTERS consecutive counters.  The round is the outer
 * loop: the inner one over the counters is what vectorises. */
DSG_CLONES static void
philox(uint32_t w[restrict 4][COUNTERS], dsg_noise_key key, uint32_t first)
{
    for (uint32_t j = 0; j < COUNTERS; j++) {
        w[0][j] = first + j;
        w[1][j] = key.draw;
        w[2][j] = key.image;
        w[3][j] = key.sample;
    }
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (size_t j = 0; j < COUNTERS; j++) {
            uint64_t p0 = (uint64_t)w[0][j] * 0xD2511F53u;
            uint64_t p1 = (uint64_t)w[2][j] * 0xCD9E8D57u;
            w[0][j] = (uint32_t)(p1 >> 32) ^ w[1][j] ^ k0;
            w[2][j] = (uint32_t)(p0 >> 32) ^ w[3][j] ^ k1;
            w[1][j] = (uint32_t)p1;
            w[3][j] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Box-Muller: radius from the words a, angle from the words b.  Polynomials for log,
 * sine and cosine after Cephes (S. Moshier), good to a few units in the last place;
 * libm's are not vectorised without fast-math. */
DSG_CLONES static void
box_muller(float *restrict out, const uint32_t *restrict a, const uint32_t *restrict b)
{
    for (size_t j = 0; j < COUNTERS; j++) {
        /* u in [2^-32, 1]; u = m 2^e with m in [sqrt(1/2), sqrt(2)) */
        float u = (float)(int32_t)(a[j] >> 1) * 0x1p-31f + 0x1p-32f;
        uint32_t bits;
        memcpy(&bits, &u, sizeof bits);
        uint32_t shifted = bits - 0x3f3504f3u; /* sqrt(1/2) */
        float e = (float)((int32_t)shifted >> 23);
        uint32_t mantissa = (shifted & 0x007fffffu) + 0x3f3504f3u;
        float m;
        memcpy(&m, &mantissa, sizeof m);
        float x = m - 1.0f, z = x * x;
        float p = 7.0376836292e-2f;
        p = p * x - 1.1514610310e-1f;
        p = p * x + 1.1676998740e-1f;
        p = p * x - 1.2420140846e-1f;
        p = p * x + 1.4249322787e-1f;
        p = p * x - 1.6668057665e-1f;
        p = p * x + 2.0000714765e-1f;
        p = p * x - 2.4999993993e-1f;
        p = p * x + 3.3333331174e-1f;
        float log_u = e * 0.69314718f + (x - 0.5f * z + p * x * z);
        float minus_2_log = -2.0f * log_u;
        float radius = sqrtf(minus_2_log > 0.0f ? minus_2_log : 0.0f);

        /* angle = q pi/2 + t with |t| <= pi/4, split in integers */
        uint32_t q = (b[j] + 0x20000000u) >> 30;
        float t = (float)(int32_t)(b[j] - (q << 30)) * (1.57079633f * 0x1p-30f);
        float s2 = t * t;
        float sine =
            ((-1.9515295891e-4f * s2 + 8.3321608736e-3f) * s2 - 1.6666654611e-1f) * s2 *
                t +
            t;
        float cosine =
            ((2.4433157118e-5f * s2 - 1.3887316255e-3f) * s2 + 4.1666645683e-2f) * s2 *
                s2 -
            0.5f * s2 + 1.0f;
        float c = (q & 1) ? sine : cosine, s = (q & 1) ? cosine : sine;
        c = ((q + 1) & 2) ? -c : c;
        s = (q & 2) ? -s : s;
        out[j] = radius * c;
        out[COUNTERS + j] = radius * s;
    }
}

void
dsg_noise_block(float *restrict out, dsg_noise_key key, uint32_t block)
{
    uint32_t w[4][COUNTERS];
    philox(w, key, block * COUNTERS);
    box_muller(out, w[0], w[1]);
    box_muller(out + 2 * COUNTERS, w[2], w[3]);
}

void
dsg_normal_f32(float *restrict out, dsg_noise_key key, size_t n)
{
    float last[DSG_NOISE_BLOCK];
    uint32_t block = 0;
    for (; n >= DSG_NOISE_BLOCK; n -= DSG_NOISE_BLOCK, out += DSG_NOISE_BLOCK)
        dsg_noise_block(out, key, block++);
    if (n) {
        dsg_noise_block(last, key, block);
        memcpy(out, last, n * sizeof *out);
    }
}

void
dsg_normal_f64(double *restrict out, dsg_noise_key key, size_t n)
{
    float buffer[DSG_NOISE_BLOCK];
    for (uint32_t block = 0; n; block++) {
        size_t m = n < DSG_NOISE_BLOCK ? n : DSG_NOISE_BLOCK;
        dsg_noise_block(buffer, key, block);
        for (size_t j = 0; j < m; j++)
            out[j] = buffer[j];
        out += m;
        n -= m;
    }
}

double
dsg_uniform(dsg_noise_key key)
{
    uint32_t w[4][COUNTERS];
    philox(w, key, 0);
    return ((double)w[0][0] + 0.5) * 0x1p-32;
}
