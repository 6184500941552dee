/* SPDX-License-Identifier: Apache-2.0 */
#include "ranges.h"

/* Read without a lock, by the handler of a signal too. An entry is in use when `end` is not 0, which is set
 * last and cleared first. */
static struct {
    uintptr_t begin, end; /* atomic */
} range[RANGES_MAX];
static size_t used; /* atomic; entries that ever were */

int ranges_enter(const void *p, size_t n) {
    for (size_t i = 0; i < RANGES_MAX; i++) {
        uintptr_t none = 0;
        /* Taken by an end that no address reaches, until the beginning is known. */
        if (!__atomic_compare_exchange_n(&range[i].end, &none, 1, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        __atomic_store_n(&range[i].begin, (uintptr_t)p, __ATOMIC_RELEASE);
        __atomic_store_n(&range[i].end, (uintptr_t)p + n, __ATOMIC_RELEASE);
        size_t seen = __atomic_load_n(&used, __ATOMIC_RELAXED);
        while (seen <= i && !__atomic_compare_exchange_n(&used, &seen, i + 1, 0, __ATOMIC_RELEASE,
                                                         __ATOMIC_RELAXED))
            ;
        return 1;
    }
    return 0;
}

void ranges_leave(const void *p) {
    for (size_t i = 0; i < RANGES_MAX; i++)
        if (__atomic_load_n(&range[i].end, __ATOMIC_ACQUIRE) > 1 &&
            __atomic_load_n(&range[i].begin, __ATOMIC_RELAXED) == (uintptr_t)p) {
            __atomic_store_n(&range[i].end, 0, __ATOMIC_RELEASE);
            return;
        }
}

void ranges_forget(void) {
    for (size_t i = 0; i < RANGES_MAX; i++)
        __atomic_store_n(&range[i].end, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&used, 0, __ATOMIC_RELAXED);
}

int ranges_touch(const void *p, uint64_t n) {
    const uintptr_t first = (uintptr_t)p;
    size_t count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < count; i++) {
        uintptr_t end = __atomic_load_n(&range[i].end, __ATOMIC_ACQUIRE);
        if (end > first && __atomic_load_n(&range[i].begin, __ATOMIC_RELAXED) < first + n)
            return 1;
    }
    return 0;
}
