/* A batch's normals for one precision. */

typedef struct DSG_NAME(normals) {
    const dsg_noise *noise;
    const dsg_real *recorded; /* (steps, b, n); NULL: made from noise */
    size_t b, n;
    size_t draws; /* that a step takes, the normals being the first */
} DSG_NAME(normals);

/* DSG_EVALUE where there is no source or too few numbers of draws are left for the
 * steps, DSG_ESHAPE for images above DSG_NOISE_MOST. */
static inline dsg_status DSG_NAME(normals_check)(const DSG_NAME(normals) *s,
                                                 size_t steps)
{
    if (s->recorded)
        return DSG_OK;
    if (!s->noise || steps > (((uint64_t)1 << 32) - s->noise->draw) / s->draws)
        return DSG_EVALUE;
    return s->n > DSG_NOISE_MOST ? DSG_ESHAPE : DSG_OK;
}

/* Elements at .. at + count - 1 of image i in a step; at is a multiple of
 * DSG_NOISE_BLOCK, which count does not exceed.  buffer has room for a block. */
static inline const dsg_real *DSG_NAME(normals_block)(const DSG_NAME(normals) *s,
                                                      size_t i, size_t step, size_t at,
                                                      size_t count, dsg_real *buffer)
{
    if (s->recorded)
        return s->recorded + (step * s->b + i) * s->n + at;
    dsg_noise_key key = noise_key(s->noise, i, step * s->draws);
    uint32_t block = (uint32_t)(at / DSG_NOISE_BLOCK);
#if DSG_PRECISION == 32
    (void)count;
    dsg_noise_block(buffer, key, block);
#else
    float narrow[DSG_NOISE_BLOCK];
    dsg_noise_block(narrow, key, block);
    for (size_t j = 0; j < count; j++)
        buffer[j] = narrow[j];
#endif
    return buffer;
}
