/* SPDX-License-Identifier: Apache-2.0
 * Cores: keys, counters and chunks, shared by the stores of an arena. */
#include <stdlib.h>
#include <string.h>

#include "memory/secret.h"
#include "platform/fork.h"
#include "platform/vmem.h"
#include "store/lock.h"

const store_core store_gone = {.generation = UINT64_MAX, .suite = NULL};

unsigned core_threads;
_Thread_local unsigned core_thread __attribute__((tls_model("initial-exec")));

ccmem_status core_alien(const store_core *core) {
    return core == &store_gone ? CCMEM_ERR_CLOSED : CCMEM_ERR_FORK;
}

/* Tags, versions and copies of these, neither dumped nor inherited. */
static ccmem_status new_records(const store_core *core, store_chunk *c) {
    const uint64_t tags = core->suite->is.tag_size, words = c->npages * sizeof *c->version;
    const int locked = core->freshness == CCMEM_FRESH_LOCKED;
    c->record_bytes = c->npages * core_record_bytes(core) - (locked ? words : 0);
    ccmem_status status =
        c->record_bytes ? vmem_map_private(c->record_bytes, &c->records) : CCMEM_OK;
    if (status != CCMEM_OK || !c->npages)
        return status;
    c->tag = tags ? c->records : NULL;
    if (core->freshness == CCMEM_FRESH_ONCE)
        return CCMEM_OK;
    c->sealed = (uint64_t *)((uint8_t *)c->records + c->npages * tags);
    if (!locked) {
        c->version = c->sealed + c->npages;
        return CCMEM_OK;
    }
    ccmem_secret_level level;
    void *version;
    status = secret_map(words, core->require, &version, &level);
    if (status == CCMEM_OK)
        c->version = version;
    return status;
}

/* Of this process's own chunk. */
static void drop_records(const store_core *core, store_chunk *c) {
    if (core->freshness == CCMEM_FRESH_LOCKED)
        secret_unmap(c->version, c->npages * sizeof *c->version);
    if (c->record_bytes)
        vmem_unmap(c->records, c->record_bytes);
}

ccmem_status chunk_new(const store_core *core, uint64_t npages, store_chunk **out) {
    const uint64_t size = npages << core->page_shift;
    void *pages = NULL;
    ccmem_status status = CCMEM_OK;
    store_chunk *c = calloc(1, sizeof *c);
    if (!c)
        return CCMEM_ERR_NOMEM;
    c->npages = npages;
    status = new_records(core, c);
    if (status == CCMEM_OK && size)
        status = vmem_map_pages(size, &pages);
    if (status == CCMEM_OK)
        status = mapping_new(pages, size, NULL, &c->pages);
    if (status == CCMEM_OK) {
        *out = c;
        return CCMEM_OK;
    }
    vmem_unmap(pages, size);
    drop_records(core, c);
    free(c);
    return status;
}

void chunk_free(const store_core *core, store_chunk *c) {
    if (!fork_alien(core->generation))
        drop_records(core, c);
    ccmem_mapping_release(c->pages);
    free(c->in_use);
    free(c);
}

/* Subkeys that are derived when they are used. */
static ccmem_status late_keys(store_core *core, const ccmem_key *key, ccmem_cipher cipher,
                              uint32_t page_size) {
    subkeys *late = calloc(1, sizeof *late);
    if (!late)
        return CCMEM_ERR_NOMEM;
    /* The reference is this core's own; other holders have the key as const. */
    ccmem_status status = subkeys_open(late, (ccmem_key *)key, cipher, page_size, &core->level);
    if (status != CCMEM_OK) {
        free(late);
        return status;
    }
    page_init_keyless(&core->page, cipher, ccmem_tier_active(), page_size);
    core->late = late;
    return CCMEM_OK;
}

ccmem_status core_new(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                      uint32_t page_size, ccmem_freshness freshness, store_core **out) {
    store_core *core;
    if (posix_memalign((void **)&core, _Alignof(store_core), sizeof *core))
        return CCMEM_ERR_NOMEM;
    memset(core, 0, sizeof *core);
    core->generation = fork_generation();
    core->page_shift = (uint32_t)__builtin_ctz(page_size);
    core->suite = page_suite_of(cipher);
    core->versions = core->suite->versions ? core->suite->versions : VERSION_MAX;
    core->version_limit = core->versions;
    core->refs = 1;
    core->read_only = !id;
    core->freshness = freshness;
    core->require = key_require(key);
    ccmem_status status =
        id ? page_key_new(&core->page, key, cipher, id, page_size, &core->key, &core->level)
           : late_keys(core, key, cipher, page_size);
    if (status != CCMEM_OK) {
        free(core);
        return status;
    }
    *out = core;
    return CCMEM_OK;
}

void core_release(store_core *core) {
    if (!core || __atomic_fetch_sub(&core->refs, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    int alien = fork_alien(core->generation);
    tweak_cache_destroy(&core->page.cache, alien);
    if (!alien) {
        secret_free(core->key);
        secret_free(core->other_key);
    }
    if (core->late)
        subkeys_close(core->late, alien);
    free(core->late);
    for (store_chunk *c = core->chunks, *next; c; c = next) {
        next = c->next;
        chunk_free(core, c);
    }
    if (core->shared && !core->read_only && !alien)
        pthread_mutex_destroy(&core->lock);
    free(core);
}

void core_stats(const store_core *core, ccmem_stats *out) {
    enum { WORDS = sizeof(ccmem_stats) / sizeof(uint64_t) };
    uint64_t *sum = (uint64_t *)out;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < SHARDS; i++) {
        const uint64_t *word = (const uint64_t *)&core->shards[i].count;
        for (int w = 0; w < WORDS; w++)
            sum[w] += __atomic_load_n(&word[w], __ATOMIC_RELAXED);
    }
}
