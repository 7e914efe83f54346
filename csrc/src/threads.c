#include "dsg/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "dsg/mem.h"

#define MAX_THREADS 64

static atomic_size_t limit; /* 0 until set up */

static size_t
processors(void)
{
#ifdef __linux__
    /* fewer than are online in a container or under taskset */
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return (size_t)CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (size_t)online : 1;
}

static size_t
default_threads(void)
{
    static const char *const names[] = {"DSG_NUM_THREADS", "OMP_NUM_THREADS"};
    for (size_t i = 0; i < 2; i++) {
        const char *value = getenv(names[i]);
        long n = value ? strtol(value, NULL, 10) : 0;
        if (n > 0)
            return (size_t)n;
    }
    return processors();
}

void
dsg_threads_set_up(void)
{
    size_t unset = 0;
    if (atomic_load(&limit) == unset)
        atomic_compare_exchange_strong(&limit, &unset, default_threads());
}

void
dsg_set_num_threads(size_t n)
{
    atomic_store(&limit, n ? n : 1);
}

size_t
dsg_num_threads(void)
{
    dsg_threads_set_up();
    size_t n = atomic_load(&limit);
    return n < MAX_THREADS ? n : MAX_THREADS;
}

typedef struct job {
    size_t n;
    dsg_work work;
    void *arg;
    atomic_size_t next;
    atomic_int status;
} job;

typedef struct worker {
    job *job;
    void *scratch;
    pthread_t thread;
} worker;

static void *
run(void *p)
{
    worker *self = p;
    job *j = self->job;
    for (;;) {
        size_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n || atomic_load(&j->status) != DSG_OK)
            return NULL;
        int err = j->work(j->arg, i, self->scratch);
        int good = DSG_OK;
        if (err != DSG_OK)
            atomic_compare_exchange_strong(&j->status, &good, err);
    }
}

dsg_status
dsg_parallel_for(size_t n, size_t scratch_bytes, dsg_work work, void *arg)
{
    if (n == 0)
        return DSG_OK;

    size_t wanted = dsg_num_threads();
    if (wanted > n)
        wanted = n;

    job j = {.n = n, .work = work, .arg = arg};
    worker workers[MAX_THREADS] = {0};

    /* The caller is worker 0 and claims items too. */
    workers[0].job = &j;
    if (scratch_bytes && !(workers[0].scratch = dsg_alloc(scratch_bytes, 1)))
        return DSG_ENOMEM;

    size_t started = 1;
    while (started < wanted) {
        worker *w = &workers[started];
        w->job = &j;
        if (scratch_bytes && !(w->scratch = dsg_alloc(scratch_bytes, 1)))
            break;
        if (pthread_create(&w->thread, NULL, run, w) != 0) {
            dsg_free(w->scratch);
            break;
        }
        started++;
    }

    run(&workers[0]);
    for (size_t k = 1; k < started; k++)
        pthread_join(workers[k].thread, NULL);
    for (size_t k = 0; k < started; k++)
        dsg_free(workers[k].scratch);
    return (dsg_status)atomic_load(&j.status);
}
