/* SPDX-License-Identifier: Apache-2.0
 * An object that each process has one of, made when it is first asked for. A forked child makes its
 * own and leaves its parent's behind: whose memory may not be mapped there, and whose lock another
 * thread may have held at the moment of the fork. */
#ifndef CCMEM_PROCESS_H
#define CCMEM_PROCESS_H

#include <pthread.h>

#include "platform/fork.h"

/* What such an object begins with. */
typedef struct process_owned {
    uint64_t generation; /* of the process that made it */
    pthread_mutex_t lock;
} process_owned;

/* Makes it, `size` bytes of zeros but for the head; of several threads one wins. */
process_owned *process_make(process_owned **current, size_t size);

/* Returns this process's object, NULL when there is no memory. */
static inline process_owned *process_object(process_owned **current, size_t size) {
    process_owned *seen = __atomic_load_n(current, __ATOMIC_ACQUIRE);
    return seen && seen->generation == fork_generation() ? seen : process_make(current, size);
}

#endif
