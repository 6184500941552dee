/* SPDX-License-Identifier: Apache-2.0
 * Opens pages as one writer left each: the reader's side of store/lock.h. */
#ifndef CCMEM_STORE_OPEN_H
#define CCMEM_STORE_OPEN_H

#include "store/core.h"

enum { READ_RETRIES = 16 }; /* before a reader takes the writers' lock */

/* Opens n bytes of a page from byte `offset` of it; n may be 0, to verify it only, and `out` NULL
 * then. CCMEM_ERR_INTEGRITY: `out` is zeros. */
ccmem_status store_read_part(ccmem_store *s, shard *sh, uint64_t page, uint32_t offset,
                             uint8_t *out, uint32_t n);

/* Opens n <= PAGE_BATCH whole pages from `first` on. CCMEM_ERR_INTEGRITY: `out` may hold what is
 * not verified. */
ccmem_status store_read_batch(ccmem_store *s, shard *sh, uint64_t first, uint8_t *out, uint64_t n,
                              unsigned flags);

static inline uint8_t *tag_of(const ccmem_store *s, uint64_t page) {
    return s->tag ? s->tag[page] : NULL;
}

#endif
