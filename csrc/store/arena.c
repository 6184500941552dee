/* SPDX-License-Identifier: Apache-2.0
 *
 * Stores that are encrypted together: runs of pages in a few large chunks, under one key.
 *
 * A page has a number of its own among all that the core has ever had, and the record of what it
 * was sealed under stays when its store goes, so that the next store there goes on with higher
 * versions: no nonce comes twice. What a chunk's numbers were is forgotten with the chunk, so they
 * are not given to another. A run that had a store before is sealed anew as zeros, unless the
 * caller's data fill it: without that its pages would look like ones put back to "never written".
 *
 * Pages that are sealed once (CCMEM_FRESH_ONCE) have no record, and none is given to another store:
 * their memory goes back to the system, and the chunk when all of its pages have gone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory/secret.h"
#include "platform/fork.h"
#include "platform/random.h"
#include "platform/vmem.h"
#include "store/core.h"

enum {
    CHUNK_MIN = 256 << 10, /* bytes of pages; a chunk is a quarter of what there is, within these */
    CHUNK_MAX = 1 << 30,
    WORD = 64
};

struct ccmem_arena {
    store_core *core;
};

/* ---- pages ----------------------------------------------------------------------------------- */

static void mark(store_chunk *c, uint64_t first, uint64_t n, int taken) {
    for (uint64_t i = first; i < first + n; i++) {
        uint64_t bit = (uint64_t)1 << i % WORD;
        c->in_use[i / WORD] = taken ? c->in_use[i / WORD] | bit : c->in_use[i / WORD] & ~bit;
    }
}

/* The first of n pages in a row that stores have left, or that are fresh behind such; npages: none.
 */
static uint64_t find_left(const store_chunk *c, uint64_t n) {
    uint64_t run = 0;
    for (uint64_t i = 0; i < c->fresh; i++) {
        if (i % WORD == 0 && !~c->in_use[i / WORD]) {
            run = 0;
            i += WORD - 1;
            continue;
        }
        run = chunk_uses(c, i) ? 0 : run + 1;
        if (run == n)
            return i + 1 - n;
    }
    return c->npages;
}

/* Returns 1 when no store has a page of the chunk, nor will have one of those that were left. */
static int spent(const store_core *core, const store_chunk *c) {
    return core->freshness == CCMEM_FRESH_ONCE && c->fresh && c->left == c->fresh;
}

/* Frees the chunks that are of no use any more. */
static void drop_spent(store_core *core) {
    for (store_chunk **link = &core->chunks, *c; (c = *link);)
        if (spent(core, c)) {
            *link = c->next;
            chunk_free(core, c);
        } else {
            link = &c->next;
        }
}

/* A new chunk with room for n pages, the core's. */
static ccmem_status grow(store_core *core, uint64_t n) {
    const uint64_t least = (uint64_t)CHUNK_MIN >> core->page_shift;
    const uint64_t most = (uint64_t)CHUNK_MAX >> core->page_shift;
    uint64_t all = 0, goal;
    drop_spent(core);
    for (const store_chunk *c = core->chunks; c; c = c->next)
        all += c->npages;
    goal = all / 4;
    goal = goal < least ? least : goal > most ? most : goal;
    goal = goal < n ? n : goal;
    if (n > PAGE_NUMBERS - core->next_page)
        return CCMEM_ERR_NOMEM;
    store_chunk *c = NULL;
    ccmem_status status = chunk_new(core, goal, &c);
    if ((status == CCMEM_ERR_NOMEM || status == CCMEM_ERR_MEMLOCK) && goal > n)
        status = chunk_new(core, goal = n, &c);
    if (status != CCMEM_OK)
        return status;
    c->in_use = calloc(goal / WORD + 1, sizeof *c->in_use);
    if (!c->in_use) {
        chunk_free(core, c);
        return CCMEM_ERR_NOMEM;
    }
    c->first = core->next_page;
    core->next_page += goal;
    c->next = core->chunks;
    core->chunks = c;
    return CCMEM_OK;
}

/* Pages for a store: fresh ones, else ones that were left, else a new chunk's. */
static ccmem_status take(store_core *core, uint64_t n, store_chunk **chunk, uint64_t *at) {
    for (store_chunk *c = core->chunks; c; c = c->next)
        if (c->npages - c->fresh >= n) {
            *chunk = c;
            *at = c->fresh;
            c->fresh += n;
            mark(c, *at, n, 1);
            return CCMEM_OK;
        }
    for (store_chunk *c = core->chunks; c; c = c->next)
        if (c->left >= n && (*at = find_left(c, n)) < c->npages) {
            *chunk = c;
            c->left -= n;
            mark(c, *at, n, 1);
            return CCMEM_OK;
        }
    ccmem_status status = grow(core, n);
    return status == CCMEM_OK ? take(core, n, chunk, at) : status;
}

/* Zeros in place of ciphertext, and the memory back to the system where whole pages of its go. */
static void discard(uint8_t *p, uint64_t n) {
    const uint64_t unit = (uint64_t)sysconf(_SC_PAGESIZE);
    if ((uintptr_t)p % unit || n % unit || madvise(p, n, MADV_DONTNEED))
        memset(p, 0, n);
}

/* Gives a store's pages back. What they held cannot be opened from then on. */
static void leave(store_core *core, const ccmem_store *s) {
    const uint64_t n = store_pages(s), at = s->first - s->chunk->first;
    store_chunk *c = s->chunk;
    /* Not while a thread moves these pages to another key: the lower of two records would stay. */
    pthread_mutex_lock(&core->lock);
    /* Both records, as one may be damaged before the next store has the page. */
    for (uint64_t i = 0; i < n && s->version; i++) {
        const uint64_t used = store_used_version(s, i);
        __atomic_store_n(store_sealed(s, i), used, __ATOMIC_RELAXED);
        __atomic_store_n(&s->version[i], used, __ATOMIC_RELAXED);
    }
    discard(s->ct, n << core->page_shift);
    if (s->tag)
        memset(s->tag, 0, n * sizeof *s->tag);
    if (!s->version)
        c->left += n; /* marked as in use, which they never are again */
    for (uint64_t i = 0; i < n && s->version; i++)
        if (*store_sealed(s, i) < core_version_limit(core)) { /* else it is of no use any more */
            mark(c, at + i, 1, 0);
            c->left++;
        }
    store_chunk **link = &core->chunks;
    /* The newest chunk stays, so that a loop of one store does not map and unmap. */
    while (*link != c)
        link = &(*link)->next;
    int empty = c->left == c->fresh && c != core->chunks;
    if (empty)
        *link = c->next;
    pthread_mutex_unlock(&core->lock);
    if (empty)
        chunk_free(core, c);
}

/* ---- arenas and their stores ----------------------------------------------------------------- */

ccmem_status ccmem_arena_new(const ccmem_key *key, ccmem_cipher cipher, uint32_t page_size,
                             uint64_t version_limit, uint32_t tweak_cache_entries,
                             ccmem_freshness freshness, ccmem_arena **out) {
    uint8_t id[CCMEM_STORE_ID_SIZE];
    if (!key || !out || !page_suite_of(cipher) || version_limit > INT64_MAX ||
        !page_size_allowed(page_size) || (unsigned)freshness > CCMEM_FRESH_ONCE)
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status == CCMEM_OK)
        status = random_bytes(id, sizeof id);
    if (status != CCMEM_OK)
        return status;
    ccmem_arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return CCMEM_ERR_NOMEM;
    status = core_new(key, cipher, id, page_size, freshness, &arena->core);
    if (status == CCMEM_OK && pthread_mutex_init(&arena->core->lock, NULL))
        status = CCMEM_ERR_NOMEM;
    else if (status == CCMEM_OK)
        arena->core->shared = 1;
    if (status == CCMEM_OK && arena->core->suite->tweaks)
        status = tweak_cache_init(&arena->core->page.cache, tweak_cache_entries, UINT32_MAX);
    if (status != CCMEM_OK) {
        ccmem_arena_free(arena);
        return status;
    }
    if (version_limit && version_limit < arena->core->versions)
        arena->core->version_limit = arena->core->versions = version_limit;
    *out = arena;
    return CCMEM_OK;
}

static void count(store_core *core, uint64_t nbytes, uint64_t npages, int sign) {
    __atomic_fetch_add(&core->stores, (uint64_t)(int64_t)sign, __ATOMIC_RELAXED);
    __atomic_fetch_add(&core->bytes, (uint64_t)(int64_t)sign * nbytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&core->pages, (uint64_t)(int64_t)sign * npages, __ATOMIC_RELAXED);
}

/* Room for a store, which reads as zeros unless its pages are going to be `replaced`, or filled. */
static ccmem_status place(store_core *core, uint64_t nbytes, int replaced, ccmem_store *s) {
    ccmem_store made = {.core = core, .nbytes = nbytes};
    const uint64_t n = store_pages(&made);
    uint64_t at = 0;
    ccmem_status status = CCMEM_OK;
    if (n) {
        pthread_mutex_lock(&core->lock);
        status = take(core, n, &made.chunk, &at);
        pthread_mutex_unlock(&core->lock);
        if (status != CCMEM_OK)
            return status;
        made.first = made.chunk->first + at;
        made.version = made.chunk->version ? made.chunk->version + at : NULL;
        made.tag = made.chunk->tag ? made.chunk->tag + at : NULL;
        made.ct = made.chunk->pages->data + (at << core->page_shift);
    }
    __atomic_fetch_add(&core->refs, 1, __ATOMIC_RELAXED);
    count(core, nbytes, n, 1);
    *s = made;
    for (uint64_t i = 0; i < n && !replaced && s->version; i++)
        if (*store_sealed(s, i) || s->version[i])
            return store_clear(s, n);
    return CCMEM_OK;
}

ccmem_status ccmem_arena_add(ccmem_arena *arena, uint64_t nbytes, const void *data, void *store) {
    if (!arena || !store)
        return CCMEM_ERR_ARGUMENT;
    if (fork_alien(arena->core->generation))
        return CCMEM_ERR_FORK;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    ccmem_store *s = store;
    ccmem_status status = place(arena->core, nbytes, data && nbytes, s);
    if (status == CCMEM_OK && data && nbytes)
        status =
            s->version ? ccmem_store_write(s, 0, data, nbytes) : store_fill(s, 0, data, nbytes);
    if (status != CCMEM_OK && s->core) {
        (void)ccmem_arena_remove(s);
        memset(s, 0, sizeof *s);
    }
    return status;
}

/* For a caller that has to call something. */
static void done(void) {}

ccmem_done ccmem_arena_remove(void *store) {
    ccmem_store *s = store, was = *s;
    if (!was.core || was.core == &store_gone)
        return done;
    *s = (ccmem_store){.core = (store_core *)&store_gone};
    if (!fork_alien(was.core->generation)) {
        count(was.core, was.nbytes, store_pages(&was), -1);
        if (was.nbytes)
            leave(was.core, &was);
    }
    core_release(was.core);
    return done;
}

uint64_t ccmem_arena_place(const ccmem_store *s) { return s->first; }

ccmem_status ccmem_arena_get_totals(const ccmem_arena *arena, ccmem_arena_totals *out) {
    const store_core *core = arena->core;
    ccmem_stats stats;
    if (fork_alien(core->generation))
        return CCMEM_ERR_FORK;
    core_stats(core, &stats);
    out->stores = __atomic_load_n(&core->stores, __ATOMIC_RELAXED);
    out->bytes = __atomic_load_n(&core->bytes, __ATOMIC_RELAXED);
    uint64_t pages = __atomic_load_n(&core->pages, __ATOMIC_RELAXED);
    out->ciphertext_bytes = pages << core->page_shift;
    out->overhead_bytes = sizeof *core + core->suite->key_size +
                          tweak_cache_bytes(&core->page.cache) + out->stores * CCMEM_STORE_SIZE +
                          pages * core_record_bytes(core);
    out->integrity_failures = stats.integrity_failures;
    return CCMEM_OK;
}

store_core *arena_core(const ccmem_arena *arena) { return arena->core; }

ccmem_secret_level ccmem_arena_level(const ccmem_arena *arena) { return arena->core->level; }

void ccmem_arena_free(ccmem_arena *arena) {
    if (!arena)
        return;
    core_release(arena->core);
    free(arena);
}
