/* SPDX-License-Identifier: Apache-2.0
 * Derives and expands the subkeys of one store. */
#include "pages/page_key.h"

#include "memory/secret.h"

int page_size_allowed(uint32_t page_size) {
    return page_size >= CCMEM_PAGE_SIZE_MIN && page_size <= CCMEM_PAGE_SIZE_MAX &&
           !(page_size & (page_size - 1));
}

ccmem_status page_key_new(page_context *page, const ccmem_key *root, ccmem_cipher cipher,
                          const uint8_t id[CCMEM_STORE_ID_SIZE], uint32_t page_size, void **key,
                          ccmem_secret_level *level) {
    const page_suite *suite = page_suite_of(cipher);
    void *expanded, *subkey;
    ccmem_status status = secret_alloc(suite->key_size, key_require(root), &expanded, level);
    if (status != CCMEM_OK)
        return status;
    status = secret_alloc(suite->is.subkey_size, key_require(root), &subkey, NULL);
    if (status == CCMEM_OK) {
        status = key_derive(root, suite->derive, suite->is.name, id, page_size, subkey,
                            suite->is.subkey_size);
        if (status == CCMEM_OK)
            status = page_init(page, cipher, ccmem_tier_active(), page_size, expanded, subkey);
        secret_free(subkey);
    }
    if (status == CCMEM_OK)
        *key = expanded;
    else
        secret_free(expanded);
    return status;
}
