/* Euler step and the loops of a level against loops written out, projected and not. */
#include "dsg/sampler.h"

#include "dsg/mask.h"
#include "dsg/resize.h"
#include "op_checks.h"

enum { B = 3, STEPS = 4 };
enum { LANGEVIN, HMC, MH, KINDS };

static const double momentum = 0.7;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_sampler.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_sampler.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_sampler_all_f32();
    test_sampler_all_f64();
    return REPORT();
}
