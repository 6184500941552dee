/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/registry.h"

#include "memory/ranges.h"
#include "platform/fork.h"
#include "store/store.h"

ccmem_region_stats windows_totals;

static pthread_mutex_t windows_lock = PTHREAD_MUTEX_INITIALIZER;
static window *windows;

window *windows_first(void) { return windows; }

/* A child has none of the ranges: their addresses are reserved, and all is counted anew. */
static void in_child(void) {
    for (window *w = windows; w; w = w->next)
        fault_reserve_in_child(&w->space);
    windows = NULL;
    pthread_mutex_init(&windows_lock, NULL);
    ranges_forget();
    windows_totals = (ccmem_region_stats){0};
}

static int conflict(const window *a, const window *b) {
    return a->store == b->store && (a->writable || b->writable) && a->from < b->to &&
           b->from < a->to;
}

ccmem_status windows_enter(window *w) {
    ccmem_status status = CCMEM_OK;
    pthread_mutex_lock(&windows_lock);
    fork_handle(FORK_WINDOWS, (fork_handlers){.in_child = in_child});
    for (const window *other = windows; other; other = other->next)
        if (conflict(w, other))
            status = CCMEM_ERR_MAPPED;
    /* With the lock held: whoever ends writes looks at all windows afterwards. */
    if (status == CCMEM_OK && w->writable)
        status = store_write_refusal(w->store);
    if (status == CCMEM_OK) {
        w->next = windows;
        if (windows)
            windows->previous = w;
        windows = w;
    }
    pthread_mutex_unlock(&windows_lock);
    return status;
}

ccmem_store_use ccmem_store_mapped(const ccmem_store *store) {
    ccmem_store_use found = CCMEM_UNMAPPED;
    pthread_mutex_lock(&windows_lock);
    for (const window *w = windows; w; w = w->next)
        if (w->store == store && found != CCMEM_MAPPED_WRITABLE)
            found = w->writable ? CCMEM_MAPPED_WRITABLE : CCMEM_MAPPED_READABLE;
    pthread_mutex_unlock(&windows_lock);
    return found;
}

void windows_leave(window *w) {
    pthread_mutex_lock(&windows_lock);
    if (w->previous)
        w->previous->next = w->next;
    else
        windows = w->next;
    if (w->next)
        w->next->previous = w->previous;
    pthread_mutex_unlock(&windows_lock);
}

static uint64_t total(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

void ccmem_regions_get_stats(ccmem_region_stats *out) {
    *out = (ccmem_region_stats){.faults = total(&windows_totals.faults),
                                .fills = total(&windows_totals.fills),
                                .read_ahead = total(&windows_totals.read_ahead),
                                .evictions = total(&windows_totals.evictions),
                                .write_backs = total(&windows_totals.write_backs)};
}
