/* Threads over the batch.
 *
 * The unit of work is one image: results never depend on the number of threads.
 * Threads are started per call and joined before it returns, so nothing spins and
 * nothing survives a fork. */
#ifndef DSG_THREADS_H
#define DSG_THREADS_H

#include <stddef.h>

#include "dsg/status.h"

/* Work on item i; `arg` is shared, `scratch` is private to the calling thread. */
typedef dsg_status (*dsg_work)(void *arg, size_t i, void *scratch);

/* Takes the first value of the upper bound below from the environment: DSG_NUM_THREADS,
 * else OMP_NUM_THREADS, else the processors this process may run on.  Reads it once; a
 * bound already set stays.  Whoever needs the bound first does this too, but reading
 * the environment is only safe while nobody writes it: a binding calls it on import. */
void dsg_threads_set_up(void);

/* Upper bound on the threads of later calls, at least 1; above 64 it counts as 64. */
void dsg_set_num_threads(size_t n);
size_t dsg_num_threads(void);

/* Calls work(arg, i, scratch) once for every i in 0..n-1, in any order, each thread
 * with its own scratch of `scratch_bytes` (64-byte aligned; NULL when 0).  Returns the
 * first failure met, DSG_ENOMEM when not even one scratch can be had; after a failure
 * the items not yet begun are skipped.  A thread that cannot be started is no
 * failure: fewer do the work. */
dsg_status dsg_parallel_for(size_t n, size_t scratch_bytes, dsg_work work, void *arg);

#endif
