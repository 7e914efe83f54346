/* A unit test in C: CHECK inside functions, RUN them in main, return REPORT. */
#ifndef DSG_UTEST_H
#define DSG_UTEST_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>

static int utest_checks, utest_failures;

#define CHECK(condition)                                                             \
    do {                                                                             \
        utest_checks++;                                                              \
        if (!(condition)) {                                                          \
            utest_failures++;                                                        \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, \
                    #condition);                                                     \
        }                                                                            \
    } while (0)

/* |a - b| <= tol; a NaN fails. */
#define CHECK_NEAR(a, b, tol)                                                    \
    do {                                                                         \
        double utest_a = (a), utest_b = (b), utest_tol = (tol);                  \
        utest_checks++;                                                          \
        if (!(fabs(utest_a - utest_b) <= utest_tol)) {                           \
            utest_failures++;                                                    \
            fprintf(stderr, "%s:%d: %s: %s = %.17g, %s = %.17g, tolerance %g\n", \
                    __FILE__, __LINE__, __func__, #a, utest_a, #b, utest_b,      \
                    utest_tol);                                                  \
        }                                                                        \
    } while (0)

#define REPORT()                                                                      \
    (printf("%-28s %6d checks, %d failed\n", __FILE__, utest_checks, utest_failures), \
     utest_failures != 0 || utest_checks == 0)

/* Uniform in [-1, 1), the same on every machine. */
static inline double
utest_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(*state >> 11) / 4503599627370496.0 - 1.0;
}

#endif
