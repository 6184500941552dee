/* SPDX-License-Identifier: Apache-2.0
 *
 * Counts without a lock: a fault's handler, a pool of blocks and any thread that asks may be here
 * at once, and a forked child must find nothing held.
 *
 * Exposure is the integral of the resident bytes over time. A change by n at time t adds n * t or
 * takes it away, and so does the reading at the end, so that one counter is enough whatever
 * overlaps. It is exact modulo 2^64, in units of 64 bytes and 2^-16 seconds: years of a window of
 * 64 MiB. */
#include "memory/budget.h"

#include <time.h>

#include "platform/fork.h"

enum { UNIT_SHIFT = 6, TICK_SHIFT = 16 };

static struct counts {
    uint64_t limit; /* 0: none */
    uint64_t reserved;
    uint64_t resident;
    uint64_t peak;  /* of resident */
    uint64_t ended; /* minus the units and ticks of what began, plus those of what ended */
    uint64_t units; /* of what is resident */
} counts;           /* each word atomic */

static uint64_t ticks_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return ((uint64_t)t.tv_sec << TICK_SHIFT) + (((uint64_t)t.tv_nsec << TICK_SHIFT) / 1000000000u);
}

static uint64_t units_of(uint64_t n) { return (n + ((uint64_t)1 << UNIT_SHIFT) - 1) >> UNIT_SHIFT; }

static void after_fork(void) { counts = (struct counts){.limit = counts.limit}; }

void budget_init(void) { fork_handle(FORK_BUDGET, (fork_handlers){.in_child = after_fork}); }

ccmem_status budget_reserve(uint64_t n) {
    uint64_t before = __atomic_load_n(&counts.reserved, __ATOMIC_RELAXED), limit;
    do {
        limit = __atomic_load_n(&counts.limit, __ATOMIC_RELAXED);
        if (limit && (n > limit || before > limit - n))
            return CCMEM_ERR_BUDGET;
    } while (!__atomic_compare_exchange_n(&counts.reserved, &before, before + n, 1,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return CCMEM_OK;
}

void budget_release(uint64_t n) { __atomic_fetch_sub(&counts.reserved, n, __ATOMIC_RELAXED); }

void budget_expose(uint64_t n) {
    uint64_t now = __atomic_add_fetch(&counts.resident, n, __ATOMIC_RELAXED);
    uint64_t peak = __atomic_load_n(&counts.peak, __ATOMIC_RELAXED);
    while (now > peak && !__atomic_compare_exchange_n(&counts.peak, &peak, now, 1, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED))
        ;
    __atomic_fetch_sub(&counts.ended, units_of(n) * ticks_now(), __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts.units, units_of(n), __ATOMIC_RELAXED);
}

void budget_hide(uint64_t n) {
    __atomic_fetch_sub(&counts.units, units_of(n), __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts.ended, units_of(n) * ticks_now(), __ATOMIC_RELAXED);
    __atomic_fetch_sub(&counts.resident, n, __ATOMIC_RELAXED);
}

ccmem_status ccmem_set_plaintext_budget(uint64_t bytes) {
    if (bytes && bytes < __atomic_load_n(&counts.reserved, __ATOMIC_RELAXED))
        return CCMEM_ERR_BUDGET;
    __atomic_store_n(&counts.limit, bytes, __ATOMIC_RELAXED);
    return CCMEM_OK;
}

void ccmem_plaintext_get_stats(ccmem_plaintext_stats *out) {
    out->budget = __atomic_load_n(&counts.limit, __ATOMIC_RELAXED);
    out->reserved = __atomic_load_n(&counts.reserved, __ATOMIC_RELAXED);
    out->resident = __atomic_load_n(&counts.resident, __ATOMIC_RELAXED);
    out->peak = __atomic_load_n(&counts.peak, __ATOMIC_RELAXED);
    uint64_t units = __atomic_load_n(&counts.units, __ATOMIC_RELAXED);
    uint64_t sum = __atomic_load_n(&counts.ended, __ATOMIC_RELAXED) + units * ticks_now();
    out->byte_seconds = (double)sum * (1 << UNIT_SHIFT) / (1 << TICK_SHIFT);
}
