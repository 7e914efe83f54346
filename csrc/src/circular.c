#include "circular.h"

#include <math.h>
#include <string.h>

#include "dsg/fft.h"
#include "dsg/mem.h"
#include "shape.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "circular.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "circular.inc.h"
#undef DSG_PRECISION
