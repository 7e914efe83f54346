#include "dsg/compose.h"

#include "dsg/mask.h"
#include "dsg/matrix.h"
#include "dsg/phase.h"
#include "dsg/pointwise.h"
#include "dsg/warp.h"
#include "op_checks.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_compose.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_compose.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_compose_all_f32();
    test_compose_all_f64();
    return REPORT();
}
