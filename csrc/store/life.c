/* SPDX-License-Identifier: Apache-2.0
 * Makes and frees stores, new ones and those over pages in a file. */
#include <stdlib.h>
#include <string.h>

#include "memory/secret.h"
#include "pages/page.h"
#include "platform/random.h"
#include "store/lock.h"

/* A store on the heap, over all of the only chunk of a core of its own. */
static ccmem_status new_store(store_core *core, uint64_t nbytes, void *pages, ccmem_store **out) {
    store_chunk *c = NULL;
    ccmem_store *s = calloc(1, sizeof *s);
    if (!s)
        return CCMEM_ERR_NOMEM;
    *s = (ccmem_store){.core = core, .nbytes = nbytes};
    ccmem_status status = chunk_new(core, store_pages(s), pages, &c);
    if (status != CCMEM_OK) {
        free(s);
        return status;
    }
    core->chunks = s->chunk = c;
    s->version = c->version;
    s->tag = c->tag;
    s->ct = c->pages->data;
    *out = s;
    return CCMEM_OK;
}

ccmem_status ccmem_store_new(const ccmem_key *key, ccmem_cipher cipher, uint64_t nbytes,
                             uint32_t page_size, uint64_t version_limit,
                             uint32_t tweak_cache_entries, ccmem_store **out) {
    uint8_t id[CCMEM_STORE_ID_SIZE];
    store_core *core;
    if (!key || !out || !page_suite_of(cipher) || version_limit > VERSION_MAX ||
        !page_size_allowed(page_size))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status != CCMEM_OK)
        return status;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    status = random_bytes(id, sizeof id);
    if (status == CCMEM_OK)
        status = core_new(key, cipher, id, page_size, 0, &core);
    if (status != CCMEM_OK)
        return status;
    if (version_limit)
        core->version_limit = version_limit;
    if (core->suite->tweaks)
        status = tweak_cache_init(&core->page.cache, tweak_cache_entries,
                                  (nbytes + page_size - 1) >> core->page_shift);
    if (status == CCMEM_OK)
        status = new_store(core, nbytes, NULL, out);
    if (status != CCMEM_OK)
        core_release(core);
    return status;
}

/* Looks at its own copy: the caller's may change meanwhile. */
static ccmem_status copy_records(ccmem_store *s, const uint64_t *versions, const uint8_t *tags) {
    const uint64_t npages = store_pages(s);
    int good = 1;
    if (!npages)
        return CCMEM_OK;
    memcpy(s->version, versions, npages * sizeof *s->version);
    memcpy(s->tag, tags, npages * sizeof *s->tag);
    for (uint64_t i = 0; i < npages; i++) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        s->version[i] = __builtin_bswap64(s->version[i]);
#endif
        good &= s->version[i] - 1 < VERSION_MAX;
    }
    return good ? CCMEM_OK : CCMEM_ERR_ARGUMENT;
}

ccmem_status store_over(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                        uint64_t nbytes, uint32_t page_size, void *pages, const uint64_t *versions,
                        const uint8_t *tags, ccmem_store **out) {
    ccmem_store *s = NULL;
    store_core *core;
    ccmem_status status = core_new(key, cipher, id, page_size, 1, &core);
    if (status != CCMEM_OK)
        return status;
    core->read_only = 1;
    status = new_store(core, nbytes, pages, &s);
    if (status == CCMEM_OK && (status = copy_records(s, versions, tags)) != CCMEM_OK)
        s->chunk->pages->data = NULL; /* they stay the caller's */
    if (status == CCMEM_OK) {
        *out = s;
        return CCMEM_OK;
    }
    free(s);
    core_release(core);
    return status;
}

void ccmem_store_free(ccmem_store *s) {
    if (!s)
        return;
    core_release(s->core);
    free(s);
}
