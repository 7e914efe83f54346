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
    for (size_t n = 1; n < 2000; n++) {
        size_t fast = dsg_fft_fast_size(n), rest = fast;
        for (size_t p = 2; p <= 5; p++)
            while (rest % p == 0)
                rest /= p;
        if (fast < n || rest != 1 || dsg_fft_fast_size(fast) != fast)
            CHECK(!"a fast size is at least n, 5-smooth and its own fast size");
    }
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
