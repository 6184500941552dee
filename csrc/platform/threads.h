/* SPDX-License-Identifier: Apache-2.0
 * Native threads for bulk work: a loop over a range, split so that each thread keeps to its own
 * part (and its cache) and takes over another's only when it has finished. */
#ifndef CCMEM_THREADS_H
#define CCMEM_THREADS_H

#include "ccmem.h"

typedef void (*parallel_body)(void *arg, uint64_t begin, uint64_t end);

/* Calls body on disjoint pieces of [0, n), which together cover it, in up to ccmem_threads()
 * threads, and returns when all have finished. `grain` > 0 is the number of items that is worth a
 * thread: with fewer than two of them, or when another call is using the threads, or when none
 * could be started, the calling thread does all. */
void parallel_for(uint64_t n, uint64_t grain, parallel_body body, void *arg);

/* Waits until another thread has stored `value`, in a moment: spins before it yields. */
void wait_for_byte(const uint8_t *byte, uint8_t value);

/* libgomp's manual, "Implementing PARALLEL construct": calls fn(data) in a team of so many threads.
 */
typedef void (*gomp_parallel)(void (*fn)(void *data), void *data, unsigned threads, unsigned flags);

/* How many threads are asked for by `work` pieces that are worth one each, of which no more than
 * `groups` can be had: at least one. */
static inline unsigned threads_for(uint64_t work, uint64_t groups) {
    const uint64_t most = work < groups ? work : groups;
    return most < 1 ? 1 : most > CCMEM_MAX_THREADS ? CCMEM_MAX_THREADS : (unsigned)most;
}

#endif
