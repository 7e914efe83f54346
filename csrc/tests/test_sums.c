/* Shared sums against one running sum. */
#include "sums.h"

#include <float.h>

#include "dsg/real.h"
#include "utest.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_sums.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_sums.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_sum_of_squares_f32();
    test_sum_of_squares_f64();
    return REPORT();
}
