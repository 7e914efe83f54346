#include "dsg/update.h"

#include <math.h>
#include <string.h>

#include "dsg/threads.h"
#include "normals.h"

/* exp(v) to 2 units in the last place, v kept in -87 .. 88 where 2^k is a normal
 * number; NaN stays.  After Cephes (S. Moshier); libm's is not vectorised without
 * fast-math, and took ten times as long as all else in the step. */
static inline float
exponential_f32(float v)
{
    v = v < -87.0f ? -87.0f : v;
    v = v > 88.0f ? 88.0f : v;
    /* v = k ln 2 + r; the last bits of the sum are k */
    float sum = v * 1.44269504f + 0x1.8p23f, k = sum - 0x1.8p23f;
    float r = v - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1.0f) * power;
}

static inline double
exponential_f64(double v)
{
    return exp(v);
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "update.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "update.inc.h"
#undef DSG_PRECISION
