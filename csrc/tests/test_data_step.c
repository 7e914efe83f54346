/* The data step of the operators that have a closed form here, and conjugate gradients
 * and the norm of those that have none. */
#include "dsg/data_step.h"

#include "data_step_checks.h"
#include "dsg/mask.h"
#include "dsg/resize.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_data_step.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_data_step.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_data_step_all_f32();
    test_data_step_all_f64();
    return REPORT();
}
