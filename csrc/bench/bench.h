/* What every benchmark needs: a clock and an order of its readings. */
#ifndef DSG_BENCH_H
#define DSG_BENCH_H

#include <stdlib.h>
#include <time.h>

/* Seconds of a clock that only goes forward. */
static inline double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* For qsort of doubles. */
static inline int
ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#endif
