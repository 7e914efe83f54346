#include "dsg/phase.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "dsg/fft.h"
#include "dsg/mem.h"
#include "shape.h"

/* Pairs of columns worked on together: 64 bytes of an image of floats. */
enum { PAIRS = 8 };

/* Complex numbers in a row of n: whole cache lines, and an odd number of eights, which
 * keeps the rows of a block off each other's cache sets. */
static size_t
row_stride(size_t n)
{
    return ((n + 7) / 8 | 1) * 8;
}

/* fftshift of one axis puts entry k at place shifted(k, n), as numpy does. */
static size_t
shifted(size_t k, size_t n)
{
    return (k + n / 2) % n;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#define SMALLEST FLT_MIN
#define SQRT sqrtf
#include "phase.inc.h"
#undef SQRT
#undef SMALLEST
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#define SMALLEST DBL_MIN
#define SQRT sqrt
#include "phase.inc.h"
#undef SQRT
#undef SMALLEST
#undef DSG_PRECISION
