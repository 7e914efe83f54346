#include "dsg/pointwise.h"

#include <math.h>
#include <string.h>

#include "dsg/mem.h"
#include "shape.h"

/* Linear light below which the response is a straight line. */
#define STRAIGHT 1e-4

#define DSG_PRECISION 32
#include "dsg/precision.h"
#define FABS fabsf
#define POW powf
#define COPYSIGN copysignf
#include "pointwise.inc.h"
#undef COPYSIGN
#undef POW
#undef FABS
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#define FABS fabs
#define POW pow
#define COPYSIGN copysign
#include "pointwise.inc.h"
#undef COPYSIGN
#undef POW
#undef FABS
#undef DSG_PRECISION
