/* Declarations of fft.h for one precision.  A complex number is two reals. */

typedef struct DSG_NAME(dsg_fft) DSG_NAME(dsg_fft);

/* The cached plan of size (h, w); never freed by the caller. */
dsg_status DSG_NAME(dsg_fft_get)(const DSG_NAME(dsg_fft) **plan, size_t h, size_t w);

/* spectrum has h * (w / 2 + 1) complex numbers, x has h * w reals. */
void DSG_NAME(dsg_fft_forward)(const DSG_NAME(dsg_fft) *plan,
                               dsg_real *restrict spectrum, dsg_real *restrict x);
void DSG_NAME(dsg_fft_inverse)(const DSG_NAME(dsg_fft) *plan, dsg_real *restrict x,
                               dsg_real *restrict spectrum);
