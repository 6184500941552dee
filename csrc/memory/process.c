/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/process.h"

#include <stdlib.h>

process_owned *process_make(process_owned **current, size_t size) {
    const uint64_t generation = fork_generation();
    process_owned *seen = __atomic_load_n(current, __ATOMIC_ACQUIRE), *fresh;
    if (seen && seen->generation == generation)
        return seen;
    fresh = calloc(1, size);
    if (!fresh)
        return NULL;
    fresh->generation = generation;
    if (pthread_mutex_init(&fresh->lock, NULL)) {
        free(fresh);
        return NULL;
    }
    if (__atomic_compare_exchange_n(current, &seen, fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return fresh;
    pthread_mutex_destroy(&fresh->lock);
    free(fresh);
    return seen; /* another thread of this process was quicker */
}
