/* An explicit matrix: y = M x, x and y flattened in row-major order. */
#ifndef DSG_MATRIX_H
#define DSG_MATRIX_H

#include "dsg/op.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/matrix.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/matrix.inc.h"
#undef DSG_PRECISION

#endif
