/* Where the normals of a batch come from: made as they are needed, or recorded.  A
 * block of DSG_NOISE_BLOCK at a time, so that made ones never leave the cache; recorded
 * ones come in the same blocks, so that the same numbers give the same result bit for
 * bit:
 *
 *     for (size_t at = 0, count; (count = block_count(n, at)); at += count)
 *         .. = normals_block(normals, i, step, at, count, buffer);
 */
#ifndef DSG_NORMALS_H
#define DSG_NORMALS_H

#include "dsg/sampler.h"

static inline dsg_noise_key
noise_key(const dsg_noise *noise, size_t i, size_t draw)
{
    return (dsg_noise_key){.seed = noise->seed,
                           .image = noise->image[i],
                           .sample = noise->sample[i],
                           .draw = noise->draw + (uint32_t)draw};
}

/* Entries of the block that begins at `at`; 0 at the end. */
static inline size_t
block_count(size_t n, size_t at)
{
    return n - at < DSG_NOISE_BLOCK ? n - at : DSG_NOISE_BLOCK;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "normals.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "normals.inc.h"
#undef DSG_PRECISION

#endif
