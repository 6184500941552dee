/* SPDX-License-Identifier: Apache-2.0
 * What a store tells of itself. */
#include "platform/fork.h"
#include "platform/lost.h"
#include "store/lock.h"

ccmem_status ccmem_store_check(const ccmem_store *s) {
    return fork_alien(s->core->generation) ? core_alien(s->core) : CCMEM_OK;
}

uint64_t ccmem_store_size(const ccmem_store *s) { return s->nbytes; }

ccmem_status store_write_refusal(const ccmem_store *s) {
    ccmem_status status = store_refuses(s);
    return status == CCMEM_OK ? writes_ended(s->core) : status;
}

ccmem_freshness ccmem_store_freshness(const ccmem_store *s) {
    return s->version || !s->nbytes ? s->core->freshness : CCMEM_FRESH_ONCE;
}

uint32_t store_page_size(const ccmem_store *s) { return s->core->page.size; }

ccmem_secret_level ccmem_store_level(const ccmem_store *s) { return s->core->level; }

ccmem_status ccmem_store_versions(ccmem_store *s, uint64_t first, uint64_t count, uint64_t *out) {
    if (fork_alien(s->core->generation))
        return core_alien(s->core);
    if (count > store_pages(s) || first > store_pages(s) - count)
        return CCMEM_ERR_RANGE;
    const uint64_t *version = s->version;
    for (uint64_t i = 0; i < count; i++)
        out[i] =
            version ? __atomic_load_n(&version[first + i], __ATOMIC_RELAXED) & ~LOCK : SEALED_ONCE;
    return CCMEM_OK;
}

ccmem_status ccmem_store_records(ccmem_store *s, uint64_t **versions, uint8_t **tags) {
    if (fork_alien(s->core->generation))
        return core_alien(s->core);
    *versions = s->version;
    *tags = (uint8_t *)s->tag;
    return CCMEM_OK;
}

ccmem_status ccmem_store_copies(ccmem_store *s, uint64_t **copies) {
    if (fork_alien(s->core->generation))
        return core_alien(s->core);
    *copies = s->core->read_only || !s->version ? NULL : store_sealed(s, 0);
    return CCMEM_OK;
}

ccmem_status ccmem_store_stats(ccmem_store *s, ccmem_stats *out) {
    if (fork_alien(s->core->generation))
        return core_alien(s->core);
    core_stats(s->core, out);
    return CCMEM_OK;
}

const char *ccmem_store_lost(const ccmem_store *s, uint64_t page) {
    const uint32_t shift = s->core->page_shift;
    return page < store_pages(s) ? lost_path(s->ct + (page << shift), (size_t)1 << shift) : NULL;
}

uint64_t ccmem_store_overhead(const ccmem_store *s) {
    const store_core *core = s->core;
    uint64_t own = core->read_only ? sizeof(file_store) + store_pages(s) * CCMEM_FILE_RECORD_SIZE
                                   : sizeof *s + store_pages(s) * core_record_bytes(core);
    if (core->shared)
        return own;
    own += sizeof *core + sizeof(ccmem_mapping);
    return core->read_only
               ? own + sizeof *core->late
               : own + sizeof(store_chunk) + core->suite->key_size * (core->other_key ? 2 : 1) +
                     tweak_cache_bytes(&core->page.cache);
}
