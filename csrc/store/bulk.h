/* SPDX-License-Identifier: Apache-2.0
 * A call on a range of a store's bytes: checked, cut into whole pages and parts, and the pages
 * shared out among threads. */
#ifndef CCMEM_STORE_BULK_H
#define CCMEM_STORE_BULK_H

#include "platform/fork.h"
#include "platform/threads.h"
#include "store/core.h"

/* Some pages that several threads read, write or verify. */
typedef struct bulk {
    ccmem_store *store;
    uint64_t first;
    uint8_t *out;
    const uint8_t *data;
    uint8_t *bad;      /* one byte a page, for verifying */
    uint64_t failures; /* atomic */
    unsigned flags;
    outcome end;
} bulk;

/* Returns how many pages are locked, checked and encrypted at a time. */
uint64_t batch_pages(const ccmem_store *s);

/* Calls `body` for the pages, in several threads unless `alone`. */
ccmem_status bulk_run(bulk *b, uint64_t pages, parallel_body body, int alone);

/* A byte range as whole pages and the parts before and after them. */
typedef struct store_range {
    uint64_t first, pages; /* whole pages */
    uint32_t head, tail;   /* bytes before and after */
    uint32_t head_offset;
    int ends; /* at the end of the store: its last page is covered, though it may not be filled */
} store_range;

/* Cuts n > 0 bytes from `offset` on at the borders of pages. */
store_range bulk_split(const ccmem_store *s, uint64_t offset, uint64_t n);

/* CCMEM_ERR_FORK, _CLOSED or _RANGE when the call is not to be. */
static inline ccmem_status check_call(const ccmem_store *s, const store_core *c, uint64_t offset,
                                      uint64_t n) {
    if (__builtin_expect(fork_alien(c->generation), 0))
        return core_alien(s->core);
    if (__builtin_expect(n > s->nbytes || offset > s->nbytes - n, 0))
        return CCMEM_ERR_RANGE;
    return CCMEM_OK;
}

#endif
