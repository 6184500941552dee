/* SPDX-License-Identifier: Apache-2.0
 * The key that a store's pages are sealed under: derived from the root key and the store's id. */
#ifndef CCMEM_PAGE_KEY_H
#define CCMEM_PAGE_KEY_H

#include "pages/key.h"
#include "pages/page.h"

/* Makes *page ready to seal and open pages of `page_size` bytes of the store `id`, with the tier in
 * use. On success *key owns the expanded key until secret_free(); *level, when not NULL, is what
 * its memory reaches, at least what the root key requires. CCMEM_ERR_FORK, and what secret_alloc()
 * returns. */
ccmem_status page_key_new(page_context *page, const ccmem_key *root, ccmem_cipher cipher,
                          const uint8_t id[CCMEM_STORE_ID_SIZE], uint32_t page_size, void **key,
                          ccmem_secret_level *level);

/* 1 for a size that pages may have. */
int page_size_allowed(uint32_t page_size);

#endif
