/* Real two-dimensional FFTs, and FFTs of one line, behind a plan cache.
 *
 * Only fft.c includes <fftw3.h>.  FFTW's planner is not thread-safe: plans are made
 * under one mutex, kept for the life of the process and shared; execution needs no
 * lock.  The mutex holds off this library's own threads only: somebody else in the
 * process who plans with the same FFTW at the same time is not held off, unless FFTW
 * was told to see to it itself (fftw_make_planner_thread_safe).  All arrays must be
 * aligned to 64 bytes (dsg_alloc is).
 *
 *     forward   X[k] = sum_j x[j] exp(-2 pi i j k / n), (h, w) real to
 *               (h, w / 2 + 1) complex
 *     inverse   unnormalised: forward, then inverse multiplies by h * w
 *
 * The inverse destroys its input.
 *
 *     line      X[k] = sum_j x[j] exp(-+ 2 pi i j k / n), n complex to n complex, the
 *               inverse (+) unnormalised too; the input is kept
 *
 * Lines are for transforms that are mostly zeros, or that are worked on while they lie
 * in the cache: whoever calls arranges the lines.  Out of place because that is twice
 * as fast as in place at 384 (FFTW 3.3.10). */
#ifndef DSG_FFT_H
#define DSG_FFT_H

#include <stddef.h>

#include "dsg/status.h"

/* The smallest size >= n of the form 2^a 3^b 5^c, which FFTW does fast; SIZE_MAX when
 * none fits a size_t. */
size_t dsg_fft_fast_size(size_t n);

/* The library's own name and version, for `info`. */
const char *dsg_fft_version(void);

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/fft.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/fft.inc.h"
#undef DSG_PRECISION

#endif
