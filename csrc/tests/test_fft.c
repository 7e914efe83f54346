#include "dsg/fft.h"

#include <pthread.h>

#include "op_checks.h"

static void
test_fast_sizes(void)
{
    static const size_t want[][2] = {{0, 1},     {1, 1},     {2, 2},     {7, 8},
                                     {11, 12},   {13, 15},   {97, 100},  {121, 125},
                                     {124, 125}, {316, 320}, {513, 540}, {1021, 1024}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        CHECK(dsg_fft_fast_size(want[i][0]) == want[i][1]);
    /* downwards: the fast size of n is n itself or that of n + 1 */
    for (size_t n = 20000, next = dsg_fft_fast_size(n); n > 0; n--) {
        size_t rest = n;
        for (size_t p = 2; p <= 5; p++)
            while (rest % p == 0)
                rest /= p;
        next = rest == 1 ? n : next;
        if (dsg_fft_fast_size(n) != next)
            CHECK(!"a fast size is the smallest 5-smooth number not below n");
    }
    CHECK(dsg_fft_fast_size(SIZE_MAX / 2 + 1) == SIZE_MAX / 2 + 1);
    CHECK(dsg_fft_fast_size(SIZE_MAX / 4) == SIZE_MAX / 4 + 1);
    CHECK(dsg_fft_fast_size(SIZE_MAX) == SIZE_MAX);
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_fft.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_fft.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_fast_sizes();
    test_fft_all_f32();
    test_fft_all_f64();
    return REPORT();
}
