/* Declarations of fft.h for one precision.  A complex number is two reals. */

typedef struct DSG_NAME(dsg_fft) DSG_NAME(dsg_fft);

/* The cached plan of size (h, w); never freed by the caller. */
dsg_status DSG_NAME(dsg_fft_get)(const DSG_NAME(dsg_fft) **plan, size_t h, size_t w);

/* spectrum has h * (w / 2 + 1) complex numbers, x has h * w reals. */
void DSG_NAME(dsg_fft_forward)(const DSG_NAME(dsg_fft) *plan,
                               dsg_real *restrict spectrum, dsg_real *restrict x);
void DSG_NAME(dsg_fft_inverse)(const DSG_NAME(dsg_fft) *plan, dsg_real *restrict x,
                               dsg_real *restrict spectrum);

typedef struct DSG_NAME(dsg_fft_line) DSG_NAME(dsg_fft_line);

/* The cached plan of length n. */
dsg_status DSG_NAME(dsg_fft_line_get)(const DSG_NAME(dsg_fft_line) **plan, size_t n);

void DSG_NAME(dsg_fft_line_forward)(const DSG_NAME(dsg_fft_line) *plan,
                                    dsg_real *restrict out,
                                    const dsg_real *restrict in);
void DSG_NAME(dsg_fft_line_inverse)(const DSG_NAME(dsg_fft_line) *plan,
                                    dsg_real *restrict out,
                                    const dsg_real *restrict in);
