/* Checked allocation and sizes.
 *
 * Memory is aligned to 64 bytes.  Every allocation of the core goes through
 * dsg_alloc, so that a test build (DSG_TEST_HOOKS) can fail the n-th one. */
#ifndef DSG_MEM_H
#define DSG_MEM_H

#include <stdbool.h>
#include <stddef.h>

#define DSG_ALIGN 64

/* out = a * b; false on overflow. */
bool dsg_mul(size_t a, size_t b, size_t *out);

/* n rounded up to a multiple of DSG_ALIGN; n must not lie within that of SIZE_MAX. */
static inline size_t
dsg_align_up(size_t n)
{
    return (n + DSG_ALIGN - 1) / DSG_ALIGN * DSG_ALIGN;
}

/* n elements of the given size, uninitialised.  NULL when out of memory or when the
 * product overflows; a request of 0 bytes returns a unique pointer. */
void *dsg_alloc(size_t n, size_t size);

/* The same, zero-filled. */
void *dsg_calloc(size_t n, size_t size);

/* Accepts NULL. */
void dsg_free(void *p);

#ifdef DSG_TEST_HOOKS
/* Fails the k-th allocation from now (k = 1 is the next one); 0 switches it off. */
void dsg_fail_alloc_after(size_t k);
/* Allocations made so far, failed ones included; blocks not yet freed. */
size_t dsg_alloc_count(void);
size_t dsg_alloc_live(void);
#endif

#endif
