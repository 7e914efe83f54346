#include "dsg/mask.h"

#include <string.h>

#include "dsg/data_step.h"
#include "dsg/mem.h"
#include "shape.h"
#include "sums.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "mask.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "mask.inc.h"
#undef DSG_PRECISION
