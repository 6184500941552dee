/* SPDX-License-Identifier: Apache-2.0
 * Reads any range of bytes: parts of pages at its ends, whole pages between, by several threads. */
#include "memory/secret.h"
#include "store/bulk.h"
#include "store/open.h"

static void read_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s->core);
    uint64_t most = batch_pages(s);
    for (uint64_t i = begin, n; i < end && !outcome_stopped(&b->end); i += n) {
        n = end - i < most ? end - i : most;
        ccmem_status status =
            store_read_batch(s, sh, b->first + i, b->out + (i << s->core->page_shift), n, b->flags);
        if (status != CCMEM_OK)
            outcome_stop(&b->end, status);
    }
}

static inline ccmem_status read_range(ccmem_store *s, uint64_t offset, void *out, uint64_t n,
                                      int alone) {
    store_core *c = s->core;
    ccmem_status status = check_call(s, c, offset, n);
    if (status != CCMEM_OK)
        return status;
    shard *sh = my_shard(c);
    uint8_t *to = out;
    add(&sh->count.reads, 1);
    uint32_t in_page = (uint32_t)(offset & (c->page.size - 1));
    if (n <= c->page.size - in_page) {
        if (n)
            status = store_read_part(s, sh, offset >> c->page_shift, in_page, to, (uint32_t)n);
        if (__builtin_expect(status == CCMEM_OK, 1))
            add(&sh->count.bytes_read, n);
        return status;
    }
    store_range r = bulk_split(s, offset, n);
    if (r.head)
        status = store_read_part(s, sh, r.first - 1, r.head_offset, to, r.head);
    if (status == CCMEM_OK && r.pages) {
        bulk b = {.store = s, .first = r.first, .out = to + r.head};
        status = bulk_run(&b, r.pages, read_pages, alone);
    }
    if (status == CCMEM_OK && r.tail)
        status = store_read_part(s, sh, r.first + r.pages, 0, to + (n - r.tail), r.tail);
    if (status == CCMEM_OK)
        add(&sh->count.bytes_read, n);
    else
        ccmem_wipe(out, n); /* the good pages too: no part of a refused read is handed out */
    return status;
}

ccmem_status ccmem_store_read(ccmem_store *s, uint64_t offset, void *out, uint64_t n) {
    return read_range(s, offset, out, n, 0);
}

ccmem_status store_read_alone(ccmem_store *s, uint64_t offset, void *out, uint64_t n) {
    return read_range(s, offset, out, n, 1);
}

void store_prefetch(const ccmem_store *s, uint64_t offset, uint64_t n) {
    enum {
        LINE = 64,
        LINES = 8
    }; /* the rest is left to the hardware, which sees a stream by then */
    uint64_t page = offset >> s->core->page_shift;
    if (s->version)
        __builtin_prefetch(&s->version[page]);
    if (s->tag) {
        /* A page is read from its start, whatever part of it is wanted. */
        __builtin_prefetch(s->tag[page]);
        n += offset - (page << s->core->page_shift);
        offset = page << s->core->page_shift;
    } else if (s->core->page.cache.entries) {
        const tweak_cache *cache = &s->core->page.cache;
        __builtin_prefetch(&cache->entries[(s->first + page) & cache->mask]);
    }
    for (uint64_t i = 0; i < n && i < LINES * LINE; i += LINE)
        __builtin_prefetch(s->ct + offset + i);
}

const uint8_t *store_prefetch_page(const ccmem_store *s, uint64_t offset) {
    const uint64_t page = offset >> s->core->page_shift;
    if (page << s->core->page_shift == offset) {
        if (s->version)
            __builtin_prefetch(&s->version[page], 0, 2);
        if (s->tag)
            __builtin_prefetch(s->tag[page], 0, 2);
    }
    return s->ct + offset;
}
