#include "dsg/tv.h"

#include <math.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/threads.h"
#include "shape.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "tv.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "tv.inc.h"
#undef DSG_PRECISION
