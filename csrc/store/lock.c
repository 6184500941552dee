/* SPDX-License-Identifier: Apache-2.0 */
#include "store/lock.h"

#include <sched.h>

#include "platform/cpu.h"

/* Returns 1 if the lock bit is stale: the group had no writer before we read the word and none
 * entered until after. *slot is what the slot was. */
static int orphaned(ccmem_store *s, uint64_t page, uint64_t *slot) {
    *slot = __atomic_load_n(slot_of(s, page), __ATOMIC_ACQUIRE);
    return (uint32_t)*slot == 0 && (__atomic_load_n(&s->version[page], __ATOMIC_ACQUIRE) & LOCK) &&
           __atomic_load_n(slot_of(s, page), __ATOMIC_ACQUIRE) == *slot;
}

int lock_wait(ccmem_store *s, uint64_t page, unsigned *spins, uint64_t *slot) {
    if (++*spins % 64) {
        cpu_relax();
        return 1;
    }
    if (orphaned(s, page, slot))
        return 0;
    sched_yield();
    return 1;
}

/* Locks pages from `first` on, as many of n as no thread holds, none beyond the group, and returns
 * how many; v[i] is what page i had for a version. It never waits, so writers that wait hold
 * nothing and wait for no one in a circle. */
static uint64_t lock_free_pages(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v) {
    uint64_t i = 0, left = PAGE_BATCH - (s->first + first) % PAGE_BATCH;
    v[0] = __atomic_load_n(&s->version[first], __ATOMIC_RELAXED);
    if (v[0] & LOCK)
        return 0;
    __atomic_fetch_add(slot_of(s, first), ENTER, __ATOMIC_SEQ_CST);
    for (; i < n && i < left; i++) {
        uint64_t *word = &s->version[first + i];
        v[i] = __atomic_load_n(word, __ATOMIC_RELAXED);
        if ((v[i] & LOCK) || !__atomic_compare_exchange_n(word, &v[i], v[i] | LOCK, 0,
                                                          __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            break;
    }
    if (i) /* no page may change before its lock shows */
        __atomic_thread_fence(__ATOMIC_RELEASE);
    else
        __atomic_fetch_sub(slot_of(s, first), 1, __ATOMIC_RELEASE);
    return i;
}

void lock_await_writers(store_core *c) {
    for (int i = 0; i < SLOTS; i++)
        while ((uint32_t)__atomic_load_n(&c->slots[i], __ATOMIC_SEQ_CST))
            sched_yield();
}

uint64_t lock_to_write(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v, int seize) {
    const int *paused = &s->core->paused;
    for (;;) {
        uint64_t locked = lock_pages(s, first, n, v, seize);
        if (!locked || __builtin_expect(!__atomic_load_n(paused, __ATOMIC_SEQ_CST), 1))
            return locked;
        publish(s, first, v, locked);
        while (__atomic_load_n(paused, __ATOMIC_ACQUIRE))
            sched_yield();
    }
}

uint64_t lock_pages(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v, int seize) {
    unsigned spins = 0;
    uint64_t slot, locked;
    for (;;) {
        if ((locked = lock_free_pages(s, first, n, v)))
            return locked;
        if (!(v[0] & LOCK) || lock_wait(s, first, &spins, &slot))
            continue;
        if (!seize)
            return 0;
        if (__atomic_fetch_add(slot_of(s, first), ENTER, __ATOMIC_SEQ_CST) == slot) {
            v[0] = __atomic_load_n(&s->version[first], __ATOMIC_RELAXED);
            __atomic_thread_fence(__ATOMIC_RELEASE); /* as in lock_free_pages() */
            return 1;
        }
        __atomic_fetch_sub(slot_of(s, first), 1, __ATOMIC_RELEASE);
    }
}
