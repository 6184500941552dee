/* SPDX-License-Identifier: Apache-2.0
 * Pages that are sealed once, as a file's are: nothing of the store says under which version, so
 * nothing can be put back. That no nonce comes twice follows from the order, as in a sealer: a
 * store is filled from its beginning to its end, and an arena gives no such page to another store.
 *
 * And how writes to a store are ended, so that what it holds can be sealed like that. */
#include "store/bulk.h"
#include "store/lock.h"

static void seal_pages(void *arg, uint64_t begin, uint64_t end) {
    const bulk *b = arg;
    ccmem_store *s = b->store;
    const store_core *c = s->core;
    uint64_t v[PAGE_BATCH];
    for (int i = 0; i < PAGE_BATCH; i++)
        v[i] = SEALED_ONCE;
    for (uint64_t i = begin, n; i < end; i += n) {
        const uint64_t most = batch_pages(s), page = b->first + i;
        n = end - i < most ? end - i : most;
        c->page.ops->seal(&c->page, s->ct + (page << c->page_shift), b->data + (i << c->page_shift),
                          s->first + page, v, s->tag ? s->tag + page : NULL, n, b->flags);
    }
}

/* The last page, of which n bytes are the store's: zeros follow them. */
static void seal_tail(ccmem_store *s, uint64_t page, const uint8_t *data, uint32_t n) {
    const store_core *c = s->core;
    const uint64_t offset = 0;
    (void)c->page.ops->modify(&c->page, s->ct + (page << c->page_shift), data, s->first + page, 0,
                              SEALED_ONCE, s->tag ? s->tag[page] : NULL, &offset, 1, n);
}

ccmem_status store_fill(ccmem_store *s, uint64_t offset, const uint8_t *data, uint64_t n) {
    store_core *c = s->core;
    uint64_t filled = offset;
    /* The pages are this call's, or no call's, before the first of them is sealed. */
    if (!__atomic_compare_exchange_n(&s->filled, &filled, offset + n, 0, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        return CCMEM_ERR_FROZEN;
    const uint64_t pages = n >> c->page_shift, first = offset >> c->page_shift;
    const uint32_t tail = (uint32_t)(n & (c->page.size - 1));
    bulk b = {.store = s, .first = first, .data = data};
    if (pages)
        (void)bulk_run(&b, pages, seal_pages, 0);
    if (tail)
        seal_tail(s, first + pages, data + (n - tail), tail);
    add(&my_shard(c)->count.pages_sealed, pages + !!tail);
    return CCMEM_OK;
}

ccmem_status ccmem_store_fill(ccmem_store *s, uint64_t offset, const void *data, uint64_t n) {
    ccmem_status status = check_call(s, s->core, offset, n);
    if (status != CCMEM_OK)
        return status;
    const uint32_t mask = s->core->page.size - 1;
    if (s->core->freshness != CCMEM_FRESH_ONCE || (n && !data) || (offset & mask) ||
        ((n & mask) && offset + n != s->nbytes))
        return CCMEM_ERR_ARGUMENT;
    return n ? store_fill(s, offset, data, n) : CCMEM_OK;
}

ccmem_status ccmem_store_end_writes(ccmem_store *s, int end) {
    store_core *c = s->core;
    if (fork_alien(c->generation))
        return core_alien(c);
    if (c->shared || c->read_only)
        return CCMEM_ERR_ARGUMENT;
    __atomic_store_n(&c->writes_ended, end, __ATOMIC_SEQ_CST);
    if (end)
        lock_await_writers(c);
    return CCMEM_OK;
}
