/* Allocation, overflow, failure injection, and the batch loop's threads. */
#include "utest.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "dsg/mem.h"
#include "dsg/threads.h"

static void
test_sizes_overflow_to_null(void)
{
    size_t out;
    CHECK(dsg_mul(3, 5, &out) && out == 15);
    CHECK(dsg_mul(0, SIZE_MAX, &out) && out == 0);
    CHECK(!dsg_mul(SIZE_MAX, 2, &out));
    CHECK(dsg_alloc(SIZE_MAX, 2) == NULL);
    CHECK(dsg_alloc(SIZE_MAX, 1) == NULL);
}

static void
test_memory_is_aligned_and_zeroed(void)
{
    for (size_t n = 0; n < 200; n += 7) {
        unsigned char *p = dsg_calloc(n, 1);
        CHECK(p && (uintptr_t)p % DSG_ALIGN == 0);
        for (size_t i = 0; i < n; i++)
            CHECK(p[i] == 0);
        dsg_free(p);
    }
    dsg_free(NULL);
}

static void
test_align_up_is_the_next_multiple(void)
{
    for (size_t n = 0; n <= 4 * DSG_ALIGN; n++) {
        size_t up = dsg_align_up(n);
        CHECK(up >= n && up - n < DSG_ALIGN && up % DSG_ALIGN == 0);
    }
}

/* Runs first: the environment is read once in the life of a process. */
static void
test_the_environment_gives_the_first_thread_count(void)
{
    setenv("DSG_NUM_THREADS", "3", 1);
    dsg_threads_set_up();
    setenv("DSG_NUM_THREADS", "5", 1);
    dsg_threads_set_up();
    CHECK(dsg_num_threads() == 3);
    dsg_set_num_threads(7);
    dsg_threads_set_up();
    CHECK(dsg_num_threads() == 7);
    dsg_set_num_threads(0);
    CHECK(dsg_num_threads() == 1);
    dsg_set_num_threads(SIZE_MAX);
    CHECK(dsg_num_threads() == 64);
}

static void
test_injected_failure_hits_the_named_allocation(void)
{
    size_t live = dsg_alloc_live();
    dsg_fail_alloc_after(2);
    void *a = dsg_alloc(8, 1), *b = dsg_alloc(8, 1), *c = dsg_alloc(8, 1);
    CHECK(a && !b && c);
    dsg_fail_alloc_after(0);
    dsg_free(a);
    dsg_free(c);
    CHECK(dsg_alloc_live() == live);
}

typedef struct tally {
    atomic_int seen[100];
    size_t fail_at;
} tally;

static dsg_status
count(void *arg, size_t i, void *scratch)
{
    tally *t = arg;
    if (scratch)
        memset(scratch, 1, 64);
    atomic_fetch_add(&t->seen[i], 1);
    return i == t->fail_at ? DSG_ENOCONV : DSG_OK;
}

static void
test_every_item_runs_once(void)
{
    for (size_t threads = 1; threads <= 7; threads += 3)
        for (size_t n = 0; n <= 100; n += 25) {
            tally t = {.fail_at = 1000};
            dsg_set_num_threads(threads);
            CHECK(dsg_num_threads() == threads);
            CHECK(dsg_parallel_for(n, 64, count, &t) == DSG_OK);
            for (size_t i = 0; i < 100; i++)
                CHECK(t.seen[i] == (i < n));
        }
}

static void
test_a_failure_is_returned_and_stops_the_rest(void)
{
    tally t = {.fail_at = 10};
    dsg_set_num_threads(1);
    CHECK(dsg_parallel_for(100, 0, count, &t) == DSG_ENOCONV);
    CHECK(t.seen[10] == 1 && t.seen[11] == 0);
}

static void
test_too_little_memory_for_all_threads_still_works(void)
{
    size_t live = dsg_alloc_live();
    dsg_set_num_threads(4);
    for (size_t k = 1; k <= 4; k++) {
        tally t = {.fail_at = 1000};
        dsg_fail_alloc_after(k);
        dsg_status err = dsg_parallel_for(100, 64, count, &t);
        CHECK(err == (k == 1 ? DSG_ENOMEM : DSG_OK));
        for (size_t i = 0; i < 100; i++)
            CHECK(t.seen[i] == (k > 1));
    }
    dsg_fail_alloc_after(0);
    CHECK(dsg_alloc_live() == live);
}

static void
test_every_status_has_its_own_sentence(void)
{
    for (int i = DSG_ENOTREADY; i <= 0; i++)
        for (int j = DSG_ENOTREADY - 1; j < i; j++)
            CHECK(strcmp(dsg_strerror(i), dsg_strerror(j)) != 0);
}

int
main(void)
{
    test_the_environment_gives_the_first_thread_count();
    test_sizes_overflow_to_null();
    test_align_up_is_the_next_multiple();
    test_memory_is_aligned_and_zeroed();
    test_injected_failure_hits_the_named_allocation();
    test_every_item_runs_once();
    test_a_failure_is_returned_and_stops_the_rest();
    test_too_little_memory_for_all_threads_still_works();
    test_every_status_has_its_own_sentence();
    return REPORT();
}
