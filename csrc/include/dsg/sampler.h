/* What samplers do between two network calls.
 *
 *     Euler      x <- x + (sigma' - sigma) (x - D) / sigma      (probability-flow ODE)
 *
 *     Langevin   of one annealing level, all steps in one call:
 *                g = likelihood A'^T (A(x) - y) + prior (x - x0hat)
 *                g <- P(g)                                      (with a projector)
 *                x <- x - eta g + sqrt(2 eta) n
 *
 *     HMC        v <- m v - sqrt(eta) g + sqrt(2 (1 - m)) n     (damped; g as above)
 *                x <- x + sqrt(eta) v
 *
 *     MH         x' = x + sqrt(eta) n, taken where ln U < E(x) - E(x'),
 *                E(x) = likelihood / 2 ||A(x) - y||^2 + prior / 2 ||x - x0hat||^2
 *
 * Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise
 * Annealing", CVPR 2025, Algorithm 1; the projection is Zirvi et al., ICLR 2025,
 * Appendix C.5: one decomposition a level, the noise is not projected. */
#ifndef DSG_SAMPLER_H
#define DSG_SAMPLER_H

#include <stdint.h>

#include "dsg/op.h"
#include "dsg/project.h"
#include "dsg/rng.h"

typedef struct dsg_langevin_options {
    size_t steps;
    double eta;        /* step size, > 0 */
    double likelihood; /* weight of the likelihood gradient, 1/tau^2 or 2/tau^2 */
    double prior;      /* weight of the prior gradient, 1/sigma^2 */
} dsg_langevin_options;

/* Where the normals of a batch come from. */
typedef struct dsg_noise {
    uint64_t seed;
    const uint32_t *image, *sample; /* one a batch item */
    uint32_t draw;                  /* of the first draw; a later one adds 1 */
} dsg_noise;

/* out (b) = dsg_uniform of the draw noise->draw of every batch item. */
void dsg_uniform_batch(double *restrict out, size_t b, const dsg_noise *noise);

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/sampler.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/sampler.inc.h"
#undef DSG_PRECISION

#endif
