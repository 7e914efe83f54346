/* Declarations of project.h for one precision. */

typedef struct DSG_NAME(dsg_projector) DSG_NAME(dsg_projector);

/* Room for the factors of b images.  Holds none until prepared. */
dsg_status DSG_NAME(dsg_projector_create)(DSG_NAME(dsg_projector) **p, size_t b,
                                          dsg_shape shape);
/* Accepts NULL. */
void DSG_NAME(dsg_projector_destroy)(DSG_NAME(dsg_projector) *p);

size_t DSG_NAME(dsg_projector_batch)(const DSG_NAME(dsg_projector) *p);
dsg_shape DSG_NAME(dsg_projector_shape)(const DSG_NAME(dsg_projector) *p);

/* Factors of state (b, c, h, w), images in threads.  DSG_EVALUE for options out of
 * range, DSG_ENONFINITE for NaN or Inf in the state, DSG_ENOCONV from LAPACK; after any
 * failure the projector holds no factors, as before the first prepare. */
dsg_status DSG_NAME(dsg_projector_prepare)(DSG_NAME(dsg_projector) *p,
                                           const dsg_real *state,
                                           const dsg_project_options *options);

/* Ranks and kept energy fractions (of |Z|^2; 1 for a zero channel), (b, c) each; NULL
 * unless prepared. */
const size_t *DSG_NAME(dsg_projector_ranks)(const DSG_NAME(dsg_projector) *p);
const double *DSG_NAME(dsg_projector_kept)(const DSG_NAME(dsg_projector) *p);

/* g = P(g) for image i, in place, (c, h, w); ws has dsg_projector_workspace bytes,
 * 64-byte aligned.  Many threads may apply at once. */
size_t DSG_NAME(dsg_projector_workspace)(const DSG_NAME(dsg_projector) *p);
void DSG_NAME(dsg_projector_apply)(const DSG_NAME(dsg_projector) *p, size_t i,
                                   dsg_real *restrict g, void *ws);

/* The same for all b images, in threads.  DSG_ENOTREADY unless prepared. */
dsg_status DSG_NAME(dsg_projector_apply_batch)(const DSG_NAME(dsg_projector) *p,
                                               dsg_real *g);
