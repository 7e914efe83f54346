/* Counter-based standard normals (Philox4x32-10, Box-Muller) and uniforms.
 *
 * A draw is a function of its key and the element's index alone: the same key gives
 * the same numbers at any thread count, in any order, in any batch.
 *
 *     seed    of the run
 *     image   index of the image in the user's batch
 *     sample  which of the n_samples
 *     draw    running number of the draw within the run
 *
 * Both precisions get the same numbers, computed in float: a run can be repeated in
 * double with its noise unchanged.  |n| <= 6.66, since the radius has 31 random bits.
 *
 * Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011. */
#ifndef DSG_RNG_H
#define DSG_RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct dsg_noise_key {
    uint64_t seed;
    uint32_t image, sample;
    uint32_t draw;
} dsg_noise_key;

/* Normals are made in blocks of this many; element i is number i % DSG_NOISE_BLOCK of
 * block i / DSG_NOISE_BLOCK. */
#define DSG_NOISE_BLOCK 1024

/* Most elements of a draw: the counter has 32 bits and gives four normals. */
#define DSG_NOISE_MOST ((uint64_t)1 << 34)

/* out[0..DSG_NOISE_BLOCK-1] = block number `block` of the draw. */
void dsg_noise_block(float *restrict out, dsg_noise_key key, uint32_t block);

/* out[i] = element i of the draw, i = 0..n-1; n <= DSG_NOISE_MOST. */
void dsg_normal_f32(float *restrict out, dsg_noise_key key, size_t n);
void dsg_normal_f64(double *restrict out, dsg_noise_key key, size_t n);

/* One number of a draw that is not used for normals, (k + 1/2) 2^-32 with k uniform in
 * 0..2^32-1: the first of the random words that the draw's normals would be made of. */
double dsg_uniform(dsg_noise_key key);

#endif
