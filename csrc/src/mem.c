#include "dsg/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef DSG_TEST_HOOKS
#include <stdatomic.h>

static atomic_size_t allocations, live, fail_at;

void
dsg_fail_alloc_after(size_t k)
{
    atomic_store(&fail_at, k ? atomic_load(&allocations) + k : 0);
}

size_t
dsg_alloc_count(void)
{
    return atomic_load(&allocations);
}

size_t
dsg_alloc_live(void)
{
    return atomic_load(&live);
}

static bool
injected_failure(void)
{
    size_t number = atomic_fetch_add(&allocations, 1) + 1;
    return number == atomic_load(&fail_at);
}
#endif

bool
dsg_mul(size_t a, size_t b, size_t *out)
{
    if (b != 0 && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

void *
dsg_alloc(size_t n, size_t size)
{
    size_t bytes;
    if (!dsg_mul(n, size, &bytes) || bytes > PTRDIFF_MAX - DSG_ALIGN)
        return NULL;
#ifdef DSG_TEST_HOOKS
    if (injected_failure())
        return NULL;
#endif
    /* aligned_alloc wants a multiple of the alignment */
    bytes = bytes ? dsg_align_up(bytes) : DSG_ALIGN;
    void *p = aligned_alloc(DSG_ALIGN, bytes);
#ifdef DSG_TEST_HOOKS
    if (p)
        atomic_fetch_add(&live, 1);
#endif
    return p;
}

void *
dsg_calloc(size_t n, size_t size)
{
    void *p = dsg_alloc(n, size);
    if (p)
        memset(p, 0, n * size);
    return p;
}

void
dsg_free(void *p)
{
#ifdef DSG_TEST_HOOKS
    if (p)
        atomic_fetch_sub(&live, 1);
#endif
    free(p);
}
