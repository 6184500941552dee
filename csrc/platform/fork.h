/* SPDX-License-Identifier: Apache-2.0
 * Tells an object made before a fork from one made in this process. One page under
 * MADV_WIPEONFORK holds the generation, so a child is noticed even after a bare clone(2). */
#ifndef CCMEM_FORK_H
#define CCMEM_FORK_H

#include "ccmem.h"

/* Points at the current generation; reads 0 in a forked child until fork_generation() runs there.
 * Never NULL after fork_init(). */
extern const volatile uint64_t *fork_page;

/* Makes the guard page; called once by ccmem_init. CCMEM_ERR_NOMEM. */
ccmem_status fork_init(void);

/* This process's generation, never 0; in a forked child the first call opens a new one. */
uint64_t fork_generation(void);

/* 1 when an object made in `generation` belongs to another process than this one. */
static inline int fork_alien(uint64_t generation) { return *fork_page != generation; }

#endif
