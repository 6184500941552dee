/* SPDX-License-Identifier: Apache-2.0
 *
 * Moves the pages of a store, or of an arena, to another key while they are read and written.
 *
 * Versions go on: the first version of the new key is higher than any that a page had under the old
 * one, so a page's version says which key it is under, and a reader needs no other look than the
 * one it has. No version of a page comes twice, under either key. Writers seal under the new key
 * from the beginning; the pages that none of them writes are moved here, a batch at a time, by a
 * thread that is a writer like others. docs/design/rekeying.md has the proof. */
#include <pthread.h>

#include "memory/secret.h"
#include "platform/fork.h"
#include "platform/random.h"
#include "store/bulk.h"
#include "store/open.h"
#include "store/version.h"

enum { MOVE_BYTES = 64 << 10 }; /* plaintext at a time: a page at least, whatever its size */

_Static_assert((int)MOVE_BYTES >= (int)CCMEM_PAGE_SIZE_MAX, "a page fits");
_Static_assert(MOVE_BYTES / CCMEM_PAGE_SIZE_MIN <= PAGE_BATCH, "a batch is one call of the kernel");

/* Takes the right to begin, or to move pages, which one thread has at a time. */
static ccmem_status enter(store_core *c) {
    int free = 0;
    if (fork_alien(c->generation))
        return core_alien(c);
    if (c->read_only)
        return CCMEM_ERR_READONLY;
    if (c->freshness == CCMEM_FRESH_ONCE)
        return CCMEM_ERR_FROZEN;
    return __atomic_compare_exchange_n(&c->moving, &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)
               ? CCMEM_OK
               : CCMEM_ERR_REKEY;
}

static void leave(store_core *c) { __atomic_store_n(&c->moving, 0, __ATOMIC_RELEASE); }

/* An arena's chunks stay as they are meanwhile, and their pages with the stores that have them. */
static void hold(store_core *c) {
    if (c->shared && !c->read_only)
        pthread_mutex_lock(&c->lock);
}

static void let_go(store_core *c) {
    if (c->shared && !c->read_only)
        pthread_mutex_unlock(&c->lock);
}

static int in_use(const store_chunk *c, uint64_t page) { return !c->in_use || chunk_uses(c, page); }

/* All pages of a chunk as a store. */
static ccmem_store whole(store_core *core, store_chunk *c) {
    return (ccmem_store){.core = core,
                         .chunk = c,
                         .version = c->version,
                         .tag = c->tag,
                         .ct = c->pages->data,
                         .first = c->first,
                         .nbytes = c->npages << core->page_shift};
}

/* ---- beginning ------------------------------------------------------------------------------- */

/* The highest version that a page has, while no writer changes one. Locks may be there for a
 * moment: of readers that come late too often, and of writers that do not know yet that they are to
 * wait. CCMEM_ERR_INTEGRITY: what is known of one page is damaged, so that nothing tells. */
static ccmem_status highest_version(store_core *core, uint64_t *out) {
    uint64_t highest = 0;
    for (store_chunk *c = core->chunks; c; c = c->next) {
        ccmem_store s = whole(core, c);
        for (uint64_t i = 0; i < c->npages; i++) {
            if (!in_use(c, i))
                continue;
            const uint64_t v = stable_version(&s, i);
            if ((v & LOCK) || v != __atomic_load_n(&c->sealed[i], __ATOMIC_RELAXED))
                return store_damaged(my_shard(core), c->first + i, v);
            highest = v > highest ? v : highest;
        }
    }
    *out = highest;
    return CCMEM_OK;
}

/* Has pages sealed under the key in `made` from now on. Writers are held off. */
static ccmem_status turn_to(store_core *c, const page_context *made, void *key) {
    const page_suite *suite = c->suite;
    uint64_t highest = 0;
    hold(c);
    ccmem_status status = highest_version(c, &highest);
    let_go(c);
    if (status != CCMEM_OK)
        return status;
    if (highest + 1 >= VERSION_MAX)
        return CCMEM_ERR_VERSION;
    const uint64_t turn = __atomic_load_n(&c->turn, __ATOMIC_RELAXED) ^ 1;
    if (!c->other_key) {
        c->other = c->page;
        c->other.key = c->other_key = key;
    } else {
        void *to = turn & 1 ? c->other_key : c->key;
        copy_secret(to, made->key, suite->key_size);
    }
    ccmem_stats count;
    core_stats(c, &count);
    __atomic_store_n(&c->sealed_before, count.pages_sealed, __ATOMIC_RELAXED);
    __atomic_store_n(&c->frontier, 0, __ATOMIC_RELAXED);
    const uint64_t most = c->versions < VERSION_MAX - highest ? highest + c->versions : VERSION_MAX;
    __atomic_store_n(&c->version_limit, most, __ATOMIC_RELAXED);
    __atomic_store_n(&c->turn, (highest + 1) << 1 | (turn & 1), __ATOMIC_RELEASE);
    return CCMEM_OK;
}

/* With the right to begin. */
static ccmem_status begin_rekey(store_core *c, const ccmem_key *key) {
    uint8_t id[CCMEM_STORE_ID_SIZE];
    page_context made;
    void *expanded;
    if (__atomic_load_n(&c->turn, __ATOMIC_RELAXED) >> 1)
        return CCMEM_ERR_REKEY;
    ccmem_status status = random_bytes(id, sizeof id);
    int cipher = 0;
    while (page_suite_of((ccmem_cipher)cipher) != c->suite)
        cipher++;
    if (status == CCMEM_OK)
        status = page_key_new(&made, key, (ccmem_cipher)cipher, id, c->page.size, &expanded, NULL);
    if (status != CCMEM_OK)
        return status;
    const int first = !c->other_key;
    __atomic_store_n(&c->paused, 1, __ATOMIC_SEQ_CST);
    lock_await_writers(c);
    status = turn_to(c, &made, expanded);
    __atomic_store_n(&c->paused, 0, __ATOMIC_SEQ_CST);
    if (!first || status != CCMEM_OK)
        secret_free(expanded);
    return status;
}

static ccmem_status core_rekey(store_core *c, const ccmem_key *key) {
    ccmem_key *random = NULL;
    ccmem_status status = enter(c);
    if (status != CCMEM_OK)
        return status;
    status = key ? ccmem_key_check(key) : ccmem_key_generate(c->require, &random);
    if (status == CCMEM_OK)
        status = begin_rekey(c, key ? key : random);
    ccmem_key_free(random);
    leave(c);
    return status;
}

/* ---- moving ---------------------------------------------------------------------------------- */

/* Returns 1 for a page that is to be moved: under the old key, and not one that an arena has just
 * given to a store, which has not written it yet. */
static int to_move(const ccmem_store *s, uint64_t page, uint64_t version) {
    static const page_tag none;
    if (!version || !core_before(s->core, version) || !in_use(s->chunk, page))
        return 0;
    return !(s->core->shared && s->tag && ccmem_equal(s->tag[page], none, sizeof none));
}

/* Moves n locked pages of which all are to be moved. *version becomes their new ones. */
static ccmem_status move_run(ccmem_store *s, shard *sh, uint64_t first, uint64_t *version,
                             uint64_t n, uint8_t *scratch) {
    const store_core *c = s->core;
    const page_context *from = core_page(c, version[0]), *to = core_sealing(c);
    uint8_t *ct = s->ct + (first << c->page_shift);
    page_tag *tag = s->tag ? s->tag + first : NULL;
    uint64_t next[PAGE_BATCH];
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t used = used_version(s, first + i, version[i]);
        if (used >= core_version_limit(c))
            return CCMEM_ERR_VERSION;
        next[i] = core_next_version(c, used);
    }
    uint64_t bad = from->ops->open(from, scratch, ct, s->first + first, version, tag, n, 0);
    add(&sh->count.pages_opened, n);
    if (bad) {
        const uint64_t at = (uint64_t)__builtin_ctzll(bad);
        return store_damaged(sh, s->first + first + at, version[at]);
    }
    for (uint64_t i = 0; i < n; i++) {
        version[i] = next[i];
        __atomic_store_n(store_sealed(s, first + i), next[i], __ATOMIC_RELAXED);
    }
    to->ops->seal(to, ct, scratch, s->first + first, version, tag, n, 0);
    add(&sh->count.pages_sealed, n);
    return CCMEM_OK;
}

/* Moves what is to be moved of the next pages from `first` on, at most n; *done is how many pages
 * that were, or on failure how many before the one that failed. */
static ccmem_status move_batch(ccmem_store *s, shard *sh, uint64_t first, uint64_t n,
                               uint8_t *scratch, uint64_t *done) {
    ccmem_status status = CCMEM_OK;
    uint64_t v[PAGE_BATCH], i = 0;
    /* Those that need nothing are not locked. */
    for (; i < n; i++) {
        v[0] = __atomic_load_n(&s->version[first + i], __ATOMIC_ACQUIRE);
        if (in_use(s->chunk, first + i) && ((v[0] & LOCK) || to_move(s, first + i, v[0])))
            break;
    }
    *done = i;
    if (i)
        return CCMEM_OK;
    const uint64_t locked = lock_pages(s, first, n, v, 0);
    if (!locked)
        return store_damaged(sh, s->first + first, v[0]);
    for (uint64_t run; i < locked && status == CCMEM_OK; i += status == CCMEM_OK ? run : 0) {
        const int moves = to_move(s, first + i, v[i]);
        for (run = 1; i + run < locked && to_move(s, first + i + run, v[i + run]) == moves;)
            run++;
        if (moves)
            status = move_run(s, sh, first + i, v + i, run, scratch);
    }
    publish(s, first, v, locked);
    *done = i;
    return status;
}

/* The chunk with the lowest number of a page from `from` on. */
static store_chunk *chunk_from(store_core *core, uint64_t from) {
    store_chunk *found = NULL;
    for (store_chunk *c = core->chunks; c; c = c->next)
        if (c->first + c->npages > from && (!found || c->first < found->first))
            found = c;
    return found;
}

/* No page is under the old key any more. Its place holds the new key from here on, and not zeros,
 * which everybody knows: a reader that is late opens a page with it, and then sees that the page's
 * version is another. */
static void finish(store_core *c) {
    const uint64_t turn = __atomic_load_n(&c->turn, __ATOMIC_RELAXED) & 1;
    __atomic_store_n(&c->turn, turn, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    void *old = turn ? c->key : c->other_key, *new = turn ? c->other_key : c->key;
    copy_secret(old, new, c->suite->key_size);
}

static ccmem_status move_pages(store_core *core, uint64_t npages, uint8_t *scratch,
                               uint64_t *looked_at) {
    shard *sh = my_shard(core);
    const uint64_t most = MOVE_BYTES >> core->page_shift;
    while (npages) {
        uint64_t done = 0;
        hold(core);
        store_chunk *c = chunk_from(core, core->frontier);
        if (!c) {
            let_go(core);
            finish(core);
            return CCMEM_OK;
        }
        ccmem_store s = whole(core, c);
        const uint64_t first = core->frontier > c->first ? core->frontier - c->first : 0;
        uint64_t n = c->npages - first;
        n = n < most ? n : most;
        n = n < npages ? n : npages;
        ccmem_status status = move_batch(&s, sh, first, n, scratch, &done);
        __atomic_store_n(&core->frontier, c->first + first + done, __ATOMIC_RELAXED);
        let_go(core);
        if (status != CCMEM_OK)
            return status;
        npages -= done;
        *looked_at += done;
    }
    return CCMEM_OK;
}

static ccmem_status core_move(store_core *c, uint64_t npages, uint64_t *out) {
    uint64_t done = 0;
    uint8_t *scratch;
    ccmem_status status = enter(c);
    if (status != CCMEM_OK)
        return status;
    if (__atomic_load_n(&c->turn, __ATOMIC_RELAXED) >> 1) {
        status = ccmem_plain_alloc(MOVE_BYTES, &scratch);
        if (status == CCMEM_OK) {
            status = move_pages(c, npages, scratch, &done);
            ccmem_plain_free(scratch);
        }
    }
    leave(c);
    if (status == CCMEM_OK)
        *out = done;
    return status;
}

/* ---- for callers ----------------------------------------------------------------------------- */

static ccmem_status core_key_use(store_core *c, ccmem_key_use *out) {
    ccmem_stats count;
    if (fork_alien(c->generation))
        return core_alien(c);
    core_stats(c, &count);
    ccmem_key_use use = {.moving = (__atomic_load_n(&c->turn, __ATOMIC_ACQUIRE) >> 1) != 0,
                         .version_limit = core_version_limit(c)};
    const uint64_t before = __atomic_load_n(&c->sealed_before, __ATOMIC_RELAXED);
    const uint64_t frontier = __atomic_load_n(&c->frontier, __ATOMIC_RELAXED);
    use.pages_sealed = count.pages_sealed > before ? count.pages_sealed - before : 0;
    hold(c);
    for (const store_chunk *k = c->chunks; k && !c->read_only; k = k->next) {
        const uint64_t moved = frontier > k->first ? frontier - k->first : 0;
        use.pages += k->npages;
        use.pages_moved += !use.moving || moved > k->npages ? k->npages : moved;
        for (uint64_t i = 0; i < k->npages && k->version; i++) {
            const uint64_t v = __atomic_load_n(&k->version[i], __ATOMIC_RELAXED) & ~LOCK;
            use.highest_version = v > use.highest_version ? v : use.highest_version;
        }
    }
    let_go(c);
    *out = use;
    return CCMEM_OK;
}

ccmem_status ccmem_store_rekey(ccmem_store *s, const ccmem_key *key) {
    return s->core->shared ? CCMEM_ERR_ARGUMENT : core_rekey(s->core, key);
}

ccmem_status ccmem_store_move(ccmem_store *s, uint64_t npages, uint64_t *done) {
    return s->core->shared ? CCMEM_ERR_ARGUMENT : core_move(s->core, npages, done);
}

ccmem_status ccmem_store_key_use(ccmem_store *s, ccmem_key_use *out) {
    return core_key_use(s->core, out);
}

ccmem_status ccmem_arena_rekey(ccmem_arena *arena, const ccmem_key *key) {
    return core_rekey(arena_core(arena), key);
}

ccmem_status ccmem_arena_move(ccmem_arena *arena, uint64_t npages, uint64_t *done) {
    return core_move(arena_core(arena), npages, done);
}

ccmem_status ccmem_arena_key_use(ccmem_arena *arena, ccmem_key_use *out) {
    return core_key_use(arena_core(arena), out);
}
