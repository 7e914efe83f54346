#include "dsg/fft.h"

#include <fftw3.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>

#include "dsg/mem.h"

/* FFTW's planner has one global state per precision, and so has the cache: one mutex
 * serves both precisions, since making a plan is rare. */
static pthread_mutex_t planner = PTHREAD_MUTEX_INITIALIZER;

/* FFTW_MEASURE gains 1.3 to 1.6 times at the sizes of a blur (320 x 320, bench_ops) and
 * costs 0.2 to 1.2 s for each new size, more than a whole short run spends in FFTs. */
#define PLANNER_FLAGS FFTW_ESTIMATE

size_t
dsg_fft_fast_size(size_t n)
{
    for (; n < SIZE_MAX; n++) {
        size_t rest = n ? n : 1;
        while (rest % 2 == 0)
            rest /= 2;
        while (rest % 3 == 0)
            rest /= 3;
        while (rest % 5 == 0)
            rest /= 5;
        if (rest == 1)
            break;
    }
    return n ? n : 1;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#define FFTW(x) DSG_CONCAT(fftwf_, x)
#include "fft.inc.h"
#undef FFTW
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#define FFTW(x) DSG_CONCAT(fftw_, x)
#include "fft.inc.h"
#undef FFTW
#undef DSG_PRECISION
