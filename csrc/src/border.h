/* How an image goes on beyond its edges (blur.h draws the four rules), and the adjoint
 * of going on: folding. */
#ifndef DSG_BORDER_H
#define DSG_BORDER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dsg/blur.h"
#include "dsg/mem.h"

#define DSG_OUTSIDE SIZE_MAX /* nothing is there: the entry is 0 */

/* The entry that stands at place q of an axis of n entries, q of any sign; under
 * `reflect` q is less than n away from the axis. */
static inline size_t
border_index(ptrdiff_t q, size_t n, dsg_border border)
{
    ptrdiff_t last = (ptrdiff_t)n - 1;
    if (q >= 0 && q <= last)
        return (size_t)q;
    switch (border) {
    case DSG_BORDER_REFLECT:
        return (size_t)(q < 0 ? -q : 2 * last - q);
    case DSG_BORDER_CIRCULAR:
        q %= last + 1;
        return (size_t)(q < 0 ? q + last + 1 : q);
    case DSG_BORDER_REPLICATE:
        return (size_t)(q < 0 ? 0 : last);
    default:
        return DSG_OUTSIDE;
    }
}

/* One axis with its pads.  source[k] is the entry that place -1 - k shows, for
 * k < before, and place n + k - before after that: outwards on either side, which is
 * also the order in which folding adds. */
typedef struct extension {
    size_t before, n, after;
    size_t *source;
    dsg_border border;
} extension;

/* False when out of memory. */
static inline bool
extension_make(extension *e, size_t before, size_t n, size_t after, dsg_border border)
{
    *e = (extension){.before = before, .n = n, .after = after, .border = border};
    e->source = dsg_alloc(before + after, sizeof *e->source);
    if (!e->source)
        return false;
    for (size_t k = 0; k < before; k++)
        e->source[k] = border_index(-1 - (ptrdiff_t)k, n, border);
    for (size_t k = 0; k < after; k++)
        e->source[before + k] = border_index((ptrdiff_t)(n + k), n, border);
    return true;
}

/* The length of the whole axis. */
static inline size_t
extended(const extension *e)
{
    return e->before + e->n + e->after;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "border.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "border.inc.h"
#undef DSG_PRECISION

#endif
