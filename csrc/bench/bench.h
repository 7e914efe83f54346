/* What every benchmark needs: a clock, an order of its readings, and the end of the
 * program where something fails. */
#ifndef DSG_BENCH_H
#define DSG_BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "dsg/mem.h"
#include "dsg/status.h"

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

/* n elements of the given size. */
static inline void *
get(size_t n, size_t size)
{
    void *p = dsg_alloc(n, size);
    if (!p)
        exit(1);
    return p;
}

static inline void
check(dsg_status status)
{
    if (status != DSG_OK) {
        fprintf(stderr, "%s\n", dsg_strerror(status));
        exit(1);
    }
}

#endif
