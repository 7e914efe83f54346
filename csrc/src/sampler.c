#include "dsg/sampler.h"

#include <math.h>

#include "dsg/mem.h"
#include "dsg/threads.h"

static dsg_noise_key
noise_key(const dsg_noise *noise, size_t i, size_t step)
{
    return (dsg_noise_key){.seed = noise->seed,
                           .image = noise->image[i],
                           .sample = noise->sample[i],
                           .draw = noise->draw + (uint32_t)step};
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "sampler.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "sampler.inc.h"
#undef DSG_PRECISION
