/* SPDX-License-Identifier: Apache-2.0
 * Makes and frees stores, new ones and those over pages in a file. */
#include <stdlib.h>
#include <string.h>

#include "memory/secret.h"
#include "pages/page.h"
#include "platform/fork.h"
#include "platform/random.h"
#include "platform/vmem.h"
#include "store/lock.h"

/* A store on the heap, over all of the only chunk of a core of its own. */
static ccmem_status new_store(store_core *core, uint64_t nbytes, ccmem_store **out) {
    store_chunk *c = NULL;
    ccmem_store *s = calloc(1, sizeof *s);
    if (!s)
        return CCMEM_ERR_NOMEM;
    *s = (ccmem_store){.core = core, .nbytes = nbytes};
    ccmem_status status = chunk_new(core, store_pages(s), &c);
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
                             uint32_t tweak_cache_entries, ccmem_freshness freshness,
                             ccmem_store **out) {
    uint8_t id[CCMEM_STORE_ID_SIZE];
    store_core *core;
    if (!key || !out || !page_suite_of(cipher) || version_limit > VERSION_MAX ||
        !page_size_allowed(page_size) || (unsigned)freshness > CCMEM_FRESH_ONCE)
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status != CCMEM_OK)
        return status;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    status = random_bytes(id, sizeof id);
    if (status == CCMEM_OK)
        status = core_new(key, cipher, id, page_size, freshness, &core);
    if (status != CCMEM_OK)
        return status;
    if (version_limit && version_limit < core->versions)
        core->version_limit = core->versions = version_limit;
    if (core->suite->tweaks)
        status = tweak_cache_init(&core->page.cache, tweak_cache_entries,
                                  (nbytes + page_size - 1) >> core->page_shift);
    if (status == CCMEM_OK)
        status = new_store(core, nbytes, out);
    if (status != CCMEM_OK)
        core_release(core);
    return status;
}

static ccmem_cipher cipher_of(const page_suite *suite) {
    int cipher = 0;
    while (page_suite_of((ccmem_cipher)cipher) != suite)
        cipher++;
    return (ccmem_cipher)cipher;
}

ccmem_status ccmem_store_like(const ccmem_store *like, const ccmem_key *key,
                              ccmem_freshness freshness, ccmem_store **out) {
    const store_core *c = like->core;
    ccmem_key *random = NULL;
    if (fork_alien(c->generation))
        return core_alien(c);
    if (c->read_only)
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = key ? ccmem_key_check(key) : ccmem_key_generate(c->require, &random);
    if (status != CCMEM_OK)
        return status;
    const tweak_cache *cache = &c->page.cache;
    const uint32_t tweaks = cache->entries ? (uint32_t)(cache->mask + 1) : 0;
    status = ccmem_store_new(key ? key : random, cipher_of(c->suite), like->nbytes, c->page.size, 0,
                             tweaks, freshness, out);
    ccmem_key_free(random);
    if (status == CCMEM_OK)
        core_stats(c, &(*out)->core->shards[0].count);
    return status;
}

/* Looks at its own copy of the versions: the caller's may change meanwhile. Where all are 1, as in
 * every file that a sealer wrote, none is kept, so that none can be changed later. */
static ccmem_status copy_records(ccmem_store *s, void *records, const void *versions,
                                 const void *tags) {
    const uint64_t npages = store_pages(s);
    int good = 1, once = 1;
    if (!npages)
        return CCMEM_OK;
    uint64_t *version = records;
    memcpy(version, versions, npages * sizeof *version);
    for (uint64_t i = 0; i < npages; i++) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        version[i] = __builtin_bswap64(version[i]);
#endif
        good &= version[i] - 1 < VERSION_MAX;
        once &= version[i] == SEALED_ONCE;
    }
    s->version = once ? NULL : version;
    s->tag = (page_tag *)(version + npages);
    memcpy(s->tag, tags, npages * sizeof *s->tag);
    return good ? CCMEM_OK : CCMEM_ERR_ARGUMENT;
}

/* Gives back what a read-only store of this process took for its records. */
static void drop_records(const file_store *f, uint64_t npages) {
    if (npages > CCMEM_FILE_RECORDS_MAX)
        vmem_unmap((uint64_t *)f->store.tag - npages, npages * CCMEM_FILE_RECORD_SIZE);
}

ccmem_status store_over(store_core *core, const uint8_t id[16], uint64_t nbytes,
                        ccmem_mapping *pages, uint8_t *ct, const void *versions, const void *tags,
                        file_store *f) {
    ccmem_store made = {.core = core, .pages = pages, .ct = ct, .nbytes = nbytes};
    const uint64_t npages = store_pages(&made);
    void *records = f->records;
    ccmem_status status = CCMEM_OK;
    if (npages > CCMEM_FILE_RECORDS_MAX)
        status = vmem_map_private(npages * CCMEM_FILE_RECORD_SIZE, &records);
    if (status != CCMEM_OK)
        return status;
    f->store = made;
    status = copy_records(&f->store, records, versions, tags);
    if (status != CCMEM_OK) {
        drop_records(f, npages);
        memset(&f->store, 0, sizeof f->store);
        return status;
    }
    subkey_begin(&f->key, id);
    __atomic_fetch_add(&core->refs, 1, __ATOMIC_RELAXED);
    if (pages)
        __atomic_fetch_add(&pages->refs, 1, __ATOMIC_RELAXED);
    return CCMEM_OK;
}

void store_over_end(file_store *f) {
    const file_store was = *f;
    store_core *core = was.store.core;
    const uint64_t npages = store_pages(&was.store), size = npages << core->page_shift;
    f->store = (ccmem_store){.core = (store_core *)&store_gone};
    if (!fork_alien(core->generation)) {
        subkey_end(core->late, &was.key);
        drop_records(&was, npages);
        /* Its pages of a larger mapping, which stays for others. */
        if (was.store.pages && was.store.pages->size > size)
            vmem_forget(was.store.ct, size);
    }
    ccmem_mapping_release(was.store.pages);
    core_release(core);
}

void ccmem_store_free(ccmem_store *s) {
    if (!s)
        return;
    if (s->core->read_only)
        store_over_end((file_store *)s);
    else
        core_release(s->core);
    free(s);
}
