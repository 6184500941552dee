/* SPDX-License-Identifier: Apache-2.0
 * The lock of a page: a sequence lock.
 *
 * Each page has one 64-bit word: its version, and in the top bit a writer's lock. Writers take the
 * lock, seal the page under version + 1 and publish that version, which drops the lock. Readers
 * take nothing: they decrypt under the version they saw and look again afterwards, and repeat when
 * a writer came between. So a read costs no locked instruction, and readers never wait for each
 * other; a version also never repeats, which makes the second look conclusive. A page that does not
 * match its tag is an error only if no writer came between.
 *
 * The word may be damaged like any memory. A lock that is set while no thread writes in the page's
 * group is such damage, and ends as an error, not in a wait without end.
 *
 * The order of accesses, in short; docs/design/sequence-lock.md has the proof, and
 * tests/store/test_sequence_lock.py tries every order that a processor may make of it.
 *
 *   reader: R1 load the word, acquire      writer: W1 enter the slot   W2 compare-and-swap LOCK in
 *           R2 open the page                       W3 fence, release   W4 store page, tag, copy
 *           R3 fence, acquire                      W5 sfence in kernels that store around caches
 *           R4 load the word again                 W6 store the version, release   W7 leave
 *
 * If R2 loads what some W4 stored, W3 and R3 make R4 see that writer's W2 or what came later, which
 * is not what R1 saw, since versions never come twice: the read is repeated. If R1 saw a version,
 * W6 and R1 make R2 see all of it. The page itself is loaded by ordinary loads, which the kernels
 * do through pointers between R1 and R3, each byte once. */
#ifndef CCMEM_STORE_LOCK_H
#define CCMEM_STORE_LOCK_H

#include "store/core.h"

static const uint64_t LOCK = (uint64_t)1 << 63;
static const uint64_t VERSION_MAX = ((uint64_t)1 << 63) - 1;

/* What a writer adds to the slot of its group, see SLOTS. */
static const uint64_t ENTER = ((uint64_t)1 << 32) + 1;

static inline uint64_t *slot_of(ccmem_store *s, uint64_t page) {
    return &s->core->slots[(s->first + page) / PAGE_BATCH % SLOTS];
}

/* Waits a moment for the lock of a page. Returns 0 when no thread holds it; *slot is what its slot
 * was then. */
int lock_wait(ccmem_store *s, uint64_t page, unsigned *spins, uint64_t *slot);

/* Locks pages from `first` on for writing: as many of n as no thread holds, none beyond the group,
 * but at least one, for whose writer it waits. Returns how many; v[i] is what page i had for a
 * version. A lock that no thread will ever drop is taken over with `seize`, by the one thread that
 * enters its slot next, and v[0] keeps it; without, returns 0, and v[0] is what the page's word
 * holds. W1 to W3. */
uint64_t lock_pages(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v, int seize);

/* lock_pages() for a change of what the pages hold: waits, holding none, while writers pause. */
uint64_t lock_to_write(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v, int seize);

/* Waits until each writer has left that entered its slot before. One that enters later sees, once
 * it has locked a page, what the caller stored before: both sides store, and then load what the
 * other stores, all of it sequentially consistent, so that one of the two sees the other. */
void lock_await_writers(store_core *c);

/* Returns the page's version, once no writer holds it; with LOCK when no thread will ever drop it.
 * R1. */
static inline uint64_t stable_version(ccmem_store *s, uint64_t page) {
    uint64_t v = __atomic_load_n(&s->version[page], __ATOMIC_ACQUIRE), slot;
    unsigned spins = 0;
    while (__builtin_expect((v & LOCK) != 0, 0)) {
        if (!lock_wait(s, page, &spins, &slot))
            return v;
        v = __atomic_load_n(&s->version[page], __ATOMIC_ACQUIRE);
    }
    return v;
}

/* Returns 1 if the word still holds the version. R3 and R4. */
static inline int unchanged(const uint64_t *word, uint64_t version) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __builtin_expect(__atomic_load_n(word, __ATOMIC_RELAXED) == version, 1);
}

/* Gives the n pages that were locked together their versions, which drops the locks. W6 and W7. */
static inline void publish(ccmem_store *s, uint64_t first, const uint64_t *v, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        __atomic_store_n(&s->version[first + i], v[i], __ATOMIC_RELEASE);
    __atomic_fetch_sub(slot_of(s, first), 1, __ATOMIC_RELEASE);
}

#endif
