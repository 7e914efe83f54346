#include "dsg/pointwise.h"

#include "op_checks.h"

/* f, f' and f'' as the header has them, in double. */
static void
ref_pointwise(double out[3], dsg_pointwise_kind kind, double a, double x)
{
    double u = (x + 1) / 2, line = pow(1e-4, 1 / a), p, edge, slope;
    switch (kind) {
    case DSG_POINTWISE_CLIP:
        out[0] = fmin(fmax(a * x, -1), 1);
        out[1] = fabs(a * x) <= 1 ? a : 0;
        out[2] = 0;
        return;
    case DSG_POINTWISE_ENCODE:
        p = 1 / a, edge = 1e-4, slope = line / 1e-4;
        break;
    default:
        p = a, edge = line, slope = 1e-4 / line;
    }
    if (fabs(u) < edge) {
        out[0] = 2 * slope * u - 1;
        out[1] = slope;
        out[2] = 0;
        return;
    }
    double sign = u < 0 ? -1 : 1;
    out[0] = 2 * sign * pow(fabs(u), p) - 1;
    out[1] = p * pow(fabs(u), p - 1);
    out[2] = sign * p * (p - 1) * pow(fabs(u), p - 2) / 2;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_pointwise.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_pointwise.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_pointwise_all_f32();
    test_pointwise_all_f64();
    return REPORT();
}
