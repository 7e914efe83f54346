#include "dsg/op.h"

#include <string.h>

#include "dsg/mem.h"
#include "dsg/threads.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "op.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "op.inc.h"
#undef DSG_PRECISION
