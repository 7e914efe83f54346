/* Selects dsg_real and DSG_NAME from DSG_PRECISION (32 or 64); see real.h.
 * No include guard: it is meant to be included once per precision. */
#include "dsg/real.h"

#undef dsg_real
#undef DSG_NAME
#if DSG_PRECISION == 32
#define dsg_real float
#define DSG_NAME(x) DSG_CONCAT(x, _f32)
#elif DSG_PRECISION == 64
#define dsg_real double
#define DSG_NAME(x) DSG_CONCAT(x, _f64)
#else
#error "define DSG_PRECISION as 32 or 64 before including dsg/precision.h"
#endif
