/* SPDX-License-Identifier: Apache-2.0
 * Looks at pages without handing out any of them: at their tags, and at the copies of their
 * versions. */
#include "store/bulk.h"
#include "store/open.h"
#include "store/version.h"

/* CCMEM_ERR_INTEGRITY: the page's version and the copy of it differ, though no writer is at it. */
static ccmem_status compare_copy(ccmem_store *s, shard *sh, uint64_t page) {
    uint64_t v, copy;
    if (!s->version || s->core->read_only)
        return CCMEM_OK;
    for (int tries = 0; tries < READ_RETRIES; tries++) {
        v = stable_version(s, page);
        copy = __atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED);
        if (copy == v)
            return CCMEM_OK;
        if (unchanged(&s->version[page], v))
            return store_damaged(sh, page, v);
    }
    if (!lock_pages(s, page, 1, &v, 0))
        return store_damaged(sh, page, v);
    copy = __atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED);
    publish(s, page, &v, 1);
    return copy == v ? CCMEM_OK : store_damaged(sh, page, v);
}

static void verify_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s->core);
    uint64_t failures = 0;
    for (uint64_t i = begin; i < end && !outcome_stopped(&b->end); i++) {
        ccmem_status status = store_read_part(s, sh, b->first + i, 0, NULL, 0);
        if (status == CCMEM_ERR_WITHHELD) {
            outcome_stop(&b->end, status);
            break;
        }
        b->bad[i] = status != CCMEM_OK || compare_copy(s, sh, b->first + i) != CCMEM_OK;
        failures += b->bad[i];
    }
    __atomic_fetch_add(&b->failures, failures, __ATOMIC_RELAXED);
}

ccmem_status ccmem_store_verify(ccmem_store *s, uint64_t first, uint64_t count, uint8_t *bad,
                                uint64_t *failures) {
    if (fork_alien(s->core->generation))
        return core_alien(s->core);
    if (!s->tag && store_pages(s))
        return CCMEM_ERR_ARGUMENT;
    if (count > store_pages(s) || first > store_pages(s) - count)
        return CCMEM_ERR_RANGE;
    bulk b = {.store = s, .first = first, .bad = bad};
    ccmem_failure before =
        ccmem_last_failure(); /* the status is CCMEM_OK, so it tells of no page */
    ccmem_status status = count ? bulk_run(&b, count, verify_pages, 0) : CCMEM_OK;
    store_set_failure(before);
    *failures = b.failures;
    return status;
}
