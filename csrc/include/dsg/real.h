/* The two precisions.
 *
 * A body NAME.inc.h is written once in terms of dsg_real and DSG_NAME and included
 * twice by NAME.c, once after each of these:
 *
 *     #define DSG_PRECISION 32
 *     #include "dsg/precision.h"      -> dsg_real is float,  DSG_NAME(x) is x_f32
 *     #define DSG_PRECISION 64
 *     #include "dsg/precision.h"      -> dsg_real is double, DSG_NAME(x) is x_f64
 *
 * Headers that declare for both precisions do the same.  */
#ifndef DSG_REAL_H
#define DSG_REAL_H

#include <stddef.h>
#include <stdint.h>

#define DSG_CONCAT_(a, b) a##b
#define DSG_CONCAT(a, b) DSG_CONCAT_(a, b)

/* One clone of a leaf loop per instruction set, chosen when the library is loaded.
 * The levels are compared with the processor's features; arch=haswell and the like
 * would be taken on exactly that model only.  They need gcc 12.
 * Off where the loader's resolver gets in the way (sanitizers) or does not exist. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && \
    __GNUC__ >= 12 && !defined(__clang__) && !defined(DSG_NO_CLONES)
#define DSG_HAVE_CLONES 1
#define DSG_CLONES \
    __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define DSG_HAVE_CLONES 0
#define DSG_CLONES
#endif

#endif
