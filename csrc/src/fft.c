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
    size_t best = SIZE_MAX;
    for (size_t five = 1;; five *= 5) {
        for (size_t odd = five;; odd *= 3) {
            size_t size = odd;
            while (size < n && size <= SIZE_MAX / 2)
                size *= 2;
            if (size >= n && size < best)
                best = size;
            if (odd >= n || odd > SIZE_MAX / 3)
                break;
        }
        if (five >= n || five > SIZE_MAX / 5)
            break;
    }
    return best;
}

const char *
dsg_fft_version(void)
{
    return fftw_version;
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
