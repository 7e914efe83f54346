#include "dsg/matrix.h"

#include <limits.h>
#include <math.h>

#include "dsg/lapack.h"
#include "dsg/mem.h"
#include "dsg/separable.h"
#include "shape.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "matrix.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "matrix.inc.h"
#undef DSG_PRECISION
