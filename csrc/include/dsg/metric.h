/* Image metrics, one value per image, accumulated in double.
 *
 *     psnr   10 log10(range^2 / (mse + floor)); floor 0 gives +Inf for equal images
 *            (scikit-image), piq uses 1e-8 with range 1 (80 dB at most)
 *     nmse   mean over channels of mean((ref - x)^2) / (mean(ref^2) + 1e-6)
 *     ssim   mean over channels and over the map of
 *            (2 mx my + C1)(2 cxy + C2) / ((mx^2 + my^2 + C1)(vx + vy + C2)),
 *            C1 = (0.01 range)^2, C2 = (0.03 range)^2, windows wholly inside the image:
 *              gaussian   11 x 11, sigma 1.5, population moments
 *                         (Wang et al. 2004; piq)
 *              uniform    7 x 7, unbiased moments: factor 49/48
 *                         (scikit-image's default)
 *
 * Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004. */
#ifndef DSG_METRIC_H
#define DSG_METRIC_H

#include "dsg/op.h"

typedef enum dsg_ssim_window {
    DSG_SSIM_GAUSSIAN = 0,
    DSG_SSIM_UNIFORM = 1,
} dsg_ssim_window;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/metric.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/metric.inc.h"
#undef DSG_PRECISION

#endif
