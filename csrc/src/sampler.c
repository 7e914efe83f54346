#include "dsg/sampler.h"

#include <math.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/threads.h"
#include "normals.h"

void
dsg_uniform_batch(double *restrict out, size_t b, const dsg_noise *noise)
{
    for (size_t i = 0; i < b; i++)
        out[i] = dsg_uniform(noise_key(noise, i, 0));
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "sampler.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "sampler.inc.h"
#undef DSG_PRECISION
