/* SPDX-License-Identifier: Apache-2.0
 * What the layers above a store need beside the public functions. */
#ifndef CCMEM_STORE_H
#define CCMEM_STORE_H

#include "ccmem.h"

/* Starts fetching what a read of n bytes at `offset` will touch first, which must lie inside the
 * store: version, cached tweak, ciphertext. */
void store_prefetch(const ccmem_store *store, uint64_t offset, uint64_t n);

/* What ccmem_last_failure will tell in this thread: for a failure that another thread met. */
void store_set_failure(ccmem_failure failure);

uint32_t store_page_size(const ccmem_store *store);

/* Writes `count` runs, at least 1, of n bytes each that lie in one page, from data + i * n to
 * offsets[i], as one change of that page: one version. The runs were checked and the store is this
 * process's. CCMEM_ERR_VERSION, CCMEM_ERR_INTEGRITY: nothing has changed. */
ccmem_status store_write_in_page(ccmem_store *store, const uint64_t *offsets, size_t count,
                                 const void *data, uint32_t n);

#endif
