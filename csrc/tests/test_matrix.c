#include "dsg/matrix.h"

#include "dsg/data_step.h"
#include "op_checks.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_matrix.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_matrix.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_matrix_all_f32();
    test_matrix_all_f64();
    return REPORT();
}
