/* SPDX-License-Identifier: Apache-2.0 */
#include "budget.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "fork.h"

/* One for each process: a child holds none of its parent's plaintext, and may have been forked while the
 * lock was held. */
typedef struct account {
    uint64_t generation;
    pthread_mutex_t lock;
    uint64_t reserved, resident, peak;
    uint64_t since;             /* when `resident` last changed, in nanoseconds */
    unsigned __int128 exposure; /* bytes * nanoseconds until then */
    uint64_t count[BUDGET_EVENTS]; /* atomic */
} account;

static account *current;
static uint64_t limit = UINT64_MAX; /* atomic; a child keeps it */

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static account *get_account(void) {
    uint64_t generation = fork_generation();
    account *seen = __atomic_load_n(&current, __ATOMIC_ACQUIRE), *fresh;
    if (seen && seen->generation == generation)
        return seen;
    fresh = calloc(1, sizeof *fresh);
    if (!fresh || pthread_mutex_init(&fresh->lock, NULL)) {
        free(fresh);
        return NULL;
    }
    fresh->generation = generation;
    fresh->since = now();
    if (__atomic_compare_exchange_n(&current, &seen, fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return fresh;
    pthread_mutex_destroy(&fresh->lock);
    free(fresh);
    return seen;
}

ccmem_status budget_reserve(uint64_t n) {
    account *a = get_account();
    uint64_t most = __atomic_load_n(&limit, __ATOMIC_RELAXED);
    ccmem_status status = CCMEM_ERR_BUDGET;
    if (!a)
        return CCMEM_ERR_NOMEM;
    pthread_mutex_lock(&a->lock);
    if (a->reserved <= most && n <= most - a->reserved) {
        a->reserved += n;
        status = CCMEM_OK;
    }
    pthread_mutex_unlock(&a->lock);
    return status;
}

void budget_release(uint64_t n) {
    account *a = get_account();
    if (!a)
        return;
    pthread_mutex_lock(&a->lock);
    a->reserved -= n;
    pthread_mutex_unlock(&a->lock);
}

static void change(uint64_t n, int fill) {
    account *a = get_account();
    uint64_t at = now();
    if (!a)
        return;
    pthread_mutex_lock(&a->lock);
    if (at > a->since) {
        a->exposure += (unsigned __int128)a->resident * (at - a->since);
        a->since = at;
    }
    a->resident = fill ? a->resident + n : a->resident - n;
    if (a->resident > a->peak)
        a->peak = a->resident;
    pthread_mutex_unlock(&a->lock);
}

void budget_fill(uint64_t n) { change(n, 1); }

void budget_wipe(uint64_t n) { change(n, 0); }

void budget_count(budget_event event) {
    account *a = get_account();
    if (a)
        __atomic_fetch_add(&a->count[event], 1, __ATOMIC_RELAXED);
}

ccmem_status ccmem_set_plaintext_budget(uint64_t bytes) {
    account *a = get_account();
    if (!a)
        return CCMEM_ERR_NOMEM;
    pthread_mutex_lock(&a->lock);
    ccmem_status status = a->reserved <= bytes ? CCMEM_OK : CCMEM_ERR_BUDGET;
    if (status == CCMEM_OK)
        __atomic_store_n(&limit, bytes, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&a->lock);
    return status;
}

ccmem_status ccmem_get_plaintext_stats(ccmem_plaintext_stats *out) {
    account *a = get_account();
    if (!a)
        return CCMEM_ERR_NOMEM;
    change(0, 1);
    pthread_mutex_lock(&a->lock);
    out->budget = __atomic_load_n(&limit, __ATOMIC_RELAXED);
    out->reserved = a->reserved;
    out->resident = a->resident;
    out->peak = a->peak;
    out->byte_seconds = (double)a->exposure * 1e-9;
    pthread_mutex_unlock(&a->lock);
    uint64_t *count = &out->fills;
    for (int i = 0; i < BUDGET_EVENTS; i++)
        count[i] = __atomic_load_n(&a->count[i], __ATOMIC_RELAXED);
    return CCMEM_OK;
}
