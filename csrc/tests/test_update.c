/* Updates between two network calls against their formulas written out in double. */
#include "dsg/update.h"

#include "op_checks.h"

enum { B = 3 };

/* Numbers below, at and above a block of noise and of vector lanes. */
static const size_t sizes[] = {
    1, 2, 7, 16, 37, DSG_NOISE_BLOCK, DSG_NOISE_BLOCK + 1, 3 * DSG_NOISE_BLOCK - 5};
enum { SIZES = sizeof sizes / sizeof *sizes };

static const uint32_t image_ids[B] = {5, 0, 4000000000u}, sample_ids[B] = {0, 2, 1};
static const dsg_noise noise_key = {
    .seed = 77, .image = image_ids, .sample = sample_ids, .draw = 2};
static const double scales[B] = {0.4, 0.0, -1.5};

static const dsg_ddpm_options ddpm = {
    .c1 = 0.3, .c2 = 0.7, .minlog = -6.0, .maxlog = -1.0};
static const dsg_ddim_options ddim = {
    .alpha_bar = 0.4, .alpha_bar_next = 0.7, .std = 0.3};
static const dsg_ald_options ald = {.sigma = 1.5, .weight = 0.8, .eta = 0.2};
static const dsg_adam_options adam = {
    .step = 3, .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8};

enum { DDPM, DDPM_LEARNED, DDPM_GUIDED, DDIM, RENOISE, ALD, ADAM, KINDS };

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "test_update.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "test_update.inc.h"
#undef DSG_PRECISION

int
main(void)
{
    test_update_all_f32();
    test_update_all_f64();
    return REPORT();
}
