/* SPDX-License-Identifier: Apache-2.0
 * Memory for the tweak cache. */
#include "pages/tweak_cache.h"

#include "platform/vmem.h"

ccmem_status tweak_cache_init(tweak_cache *cache, uint32_t entries, uint64_t npages) {
    uint64_t size = 1;
    void *p;
    cache->entries = NULL;
    cache->mask = 0;
    if (!entries || !npages)
        return CCMEM_OK;
    while (size < entries && size < npages)
        size *= 2;
    ccmem_status status = vmem_map_private(size * sizeof(tweak_entry), &p);
    if (status != CCMEM_OK)
        return status;
    cache->entries = p;
    cache->mask = size - 1;
    return CCMEM_OK;
}

uint64_t tweak_cache_bytes(const tweak_cache *cache) {
    return cache->entries ? (cache->mask + 1) * sizeof(tweak_entry) : 0;
}

void tweak_cache_destroy(tweak_cache *cache, int alien) {
    if (cache->entries && !alien) {
        ccmem_wipe(cache->entries, tweak_cache_bytes(cache));
        vmem_unmap(cache->entries, tweak_cache_bytes(cache));
    }
    cache->entries = NULL;
}
