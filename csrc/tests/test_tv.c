/* Total variation against loops over pixels; its prox against the iteration written out
 * on whole images, closed forms and the duality gap. */
#include "dsg/tv.h"

#include "op_checks.h"

enum { B = 2 };

static const dsg_shape shapes[] = {{1, 1, 1}, {3, 1, 1},  {1, 1, 2},   {2, 2, 1},
                                   {1, 1, 7}, {3, 5, 1},  {2, 2, 2},   {7, 3, 4},
                                   {3, 8, 8}, {1, 16, 9}, {2, 13, 17}, {3, 33, 40}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_tv.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_tv.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_tv_all_f32();
    test_tv_all_f64();
    return REPORT();
}
