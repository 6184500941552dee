/* SPDX-License-Identifier: Apache-2.0
 * Tells an object made before a fork from one made in this process, and calls what modules have to
 * do around a fork. One page under MADV_WIPEONFORK holds the generation, so a child is noticed even
 * after a bare clone(2). */
#ifndef CCMEM_FORK_H
#define CCMEM_FORK_H

#include "ccmem.h"

/* Points at the current generation; reads 0 in a forked child until fork_generation() runs there.
 * Never NULL after fork_init(). */
extern const volatile uint64_t *fork_page;

/* Makes the guard page and registers with pthread_atfork(3); called by ccmem_init before anything
 * else of the library. CCMEM_ERR_NOMEM. */
ccmem_status fork_init(void);

/* This process's generation, never 0; in a forked child the first call opens a new one. */
uint64_t fork_generation(void);

/* Returns 1 when an object made in `generation` belongs to another process than this one. */
static inline int fork_alien(uint64_t generation) { return *fork_page != generation; }

/* What modules do around a fork(2) through the C library, in this order in the parent and in the
 * child, and in the reverse order before it. The order matters once: a child forgets what its
 * parent's handlers of signals were held for (SIGNALS) before it holds one anew for the files that
 * it inherits (LOST). The others stand alone. */
typedef enum fork_place {
    FORK_SIGNALS,
    FORK_LOST,
    FORK_KEEPER,
    FORK_THREADS,
    FORK_BUDGET,
    FORK_SUBKEYS,
    FORK_TOUCHES,
    FORK_WINDOWS,
    FORK_PLACES
} fork_place;

typedef struct fork_handlers {
    void (*before)(void), (*in_parent)(void); /* both or NULL */
    void (*in_child)(void);
} fork_handlers;

/* Calls these from the next fork on, for good. May be called again with the same, but not by two
 * threads at once for one place. */
void fork_handle(fork_place place, fork_handlers handlers);

#endif
