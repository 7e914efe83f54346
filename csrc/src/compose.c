#include "dsg/compose.h"

#include "dsg/mem.h"
#include "shape.h"

/* Every level is a call on the stack of a thread. */
enum { DEEPEST = 10000 };

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "compose.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "compose.inc.h"
#undef DSG_PRECISION
