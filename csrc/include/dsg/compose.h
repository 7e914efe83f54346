/* One operator after another: y = outer(inner(x)).
 *
 *     J(x)^T v = J_inner(x)^T J_outer(inner(x))^T v
 *
 * Linear when both are. */
#ifndef DSG_COMPOSE_H
#define DSG_COMPOSE_H

#include "dsg/op.h"

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/compose.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/compose.inc.h"
#undef DSG_PRECISION

#endif
