/* Updates that samplers make between two network calls, in place on x (b, n).
 *
 *     DDPM     x <- c1 x0 + c2 x + exp(l / 2) n - scale_i gradient
 *              l = f maxlog + (1 - f) minlog, f = (code + 1) / 2    (learned range)
 *              l = minlog                                           (without code)
 *     DDIM     eps = (x - sqrt(a) x0) / sqrt(1 - a)
 *              x <- sqrt(a') x0 + sqrt(1 - a' - std^2) eps + std n
 *     renoise  x <- scale x + sigma n
 *     ALD      x <- x + eta ((D - x) / sigma^2 - weight gradient) + sqrt(2 eta) n
 *     Adam     m <- m + (1 - beta1) (gradient - m)
 *              v <- beta2 v + (1 - beta2) gradient^2
 *              x <- x - lr / (1 - beta1^k) m / (sqrt(v / (1 - beta2^k)) + eps)
 *
 * a, a' are cumulative products alpha_bar before and after the step, D the denoised
 * image, n standard normals.  Scalars are computed in double; arrays are worked on in
 * their own precision, in the order written.  In float a learned l / 2 is kept in
 * -87 .. 88, where its exponential is a normal number.
 *
 * n is the draw `noise->draw` of every image, or `recorded` (b, n) in place of `noise`,
 * or nothing where both are NULL.
 *
 * Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020.
 * Nichol, Dhariwal, "Improved denoising diffusion probabilistic models", ICML 2021
 * (learned range).
 * Song, Meng, Ermon, "Denoising diffusion implicit models", ICLR 2021, eq. 12.
 * Jalal et al., "Robust compressed sensing MRI with deep generative priors", NeurIPS
 * 2021 (ALD).
 * Kingma, Ba, "Adam", ICLR 2015; arithmetic of torch.optim.Adam. */
#ifndef DSG_UPDATE_H
#define DSG_UPDATE_H

#include <stdbool.h>

#include "dsg/sampler.h"

typedef struct dsg_ddpm_options {
    double c1, c2;
    double minlog, maxlog; /* of the variance; maxlog counts with a code only */
} dsg_ddpm_options;

typedef struct dsg_ddim_options {
    double alpha_bar;      /* in (0, 1) */
    double alpha_bar_next; /* in (0, 1] */
    double std;            /* >= 0; its square at most 1 - alpha_bar_next */
} dsg_ddim_options;

/* Whether std is in range; rounding may carry its square past 1 - alpha_bar_next, it
 * then counts as equal. */
static inline bool
dsg_ddim_std_fits(double alpha_bar_next, double std)
{
    return std >= 0.0 && std * std <= (1.0 - alpha_bar_next) * (1.0 + 1e-12);
}

typedef struct dsg_ald_options {
    double sigma; /* > 0 */
    double weight;
    double eta; /* >= 0 */
} dsg_ald_options;

typedef struct dsg_adam_options {
    size_t step;         /* k, from 1 */
    double lr;           /* >= 0 */
    double beta1, beta2; /* in [0, 1) */
    double eps;          /* >= 0 */
} dsg_adam_options;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/update.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/update.inc.h"
#undef DSG_PRECISION

#endif
