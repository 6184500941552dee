/* SPDX-License-Identifier: Apache-2.0 */
#include "store/bulk.h"

enum {
    BATCH_BYTES = 256 << 10, /* an L2's worth */
    GRAIN_BYTES = 512 << 10, /* the least that is worth another thread */
    /* From this size on a bulk call writes around the caches. Below it the destination may still
     * be cached when it is used next, and non-temporal stores would cost more than they save. */
    STREAM_BYTES = 4 << 20
};

uint64_t batch_pages(const ccmem_store *s) {
    uint64_t n = BATCH_BYTES >> s->core->page_shift;
    return n < PAGE_BATCH ? n : PAGE_BATCH;
}

store_range bulk_split(const ccmem_store *s, uint64_t offset, uint64_t n) {
    store_range r = {0};
    uint32_t size = s->core->page.size;
    r.ends = offset + n == s->nbytes;
    r.first = offset >> s->core->page_shift;
    r.head_offset = (uint32_t)(offset & (size - 1));
    if (r.head_offset || n < size) {
        r.head = (uint32_t)(n < size - r.head_offset ? n : size - r.head_offset);
        r.first++;
        n -= r.head;
    }
    r.pages = n >> s->core->page_shift;
    r.tail = (uint32_t)(n & (size - 1));
    return r;
}

ccmem_status bulk_run(bulk *b, uint64_t pages, parallel_body body, int alone) {
    const ccmem_store *s = b->store;
    b->flags = (pages << s->core->page_shift) >= STREAM_BYTES ? PAGE_STREAM : 0;
    if (alone)
        body(b, 0, pages);
    else
        parallel_for(pages, GRAIN_BYTES >> s->core->page_shift, body, b);
    return outcome_end(&b->end);
}
