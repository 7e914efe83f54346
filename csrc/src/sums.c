#include "sums.h"

#include "dsg/real.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "sums.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "sums.inc.h"
#undef DSG_PRECISION
