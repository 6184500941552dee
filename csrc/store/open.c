/* SPDX-License-Identifier: Apache-2.0 */
#include "store/open.h"

#include <string.h>

#include "memory/ranges.h"
#include "platform/lost.h"
#include "store/version.h"

/* Returns the version to open a page under: stable_version(), or what every page has that is sealed
 * once. That number is in the code and in no memory that can be written, and under the key of such
 * a page there is no other state of it. */
static inline uint64_t version_now(ccmem_store *s, uint64_t page) {
    return s->version ? stable_version(s, page) : SEALED_ONCE;
}

/* Returns 1 if no writer came since version_now(). */
static inline int still(const ccmem_store *s, uint64_t page, uint64_t version) {
    return !s->version || unchanged(&s->version[page], version);
}

/* n may be 0, and out NULL then, which memset() does not take. */
static inline void clear(uint8_t *out, uint32_t n) {
    if (n)
        memset(out, 0, n);
}

/* PAGE_LAST, where the pages before page `end` are near the last of the store, or 0. */
static inline unsigned last(const ccmem_store *s, uint64_t end) {
    return (store_pages(s) - end) << s->core->page_shift < PAGE_AHEAD ? PAGE_LAST : 0;
}

/* Returns the context for one attempt at pages with a subkey that is derived when it is used. What
 * was done with it means nothing until lent_back() is true. Its key is NULL while it is withheld:
 * then the pages count as bad. */
static page_context lend(ccmem_store *s, uint64_t *ticket) {
    lost_guard();
    page_context page = s->core->page;
    page.key = subkey_borrow(s->core->late, &((file_store *)s)->key, ticket);
    if (__builtin_expect(!page.key, 0))
        store_withheld();
    return page;
}

static int lent_back(const store_core *c, uint64_t ticket) { return subkey_kept(c->late, ticket); }

static __attribute__((noinline)) page_result open_part_late(ccmem_store *s, uint64_t page,
                                                            uint64_t version, uint32_t offset,
                                                            uint8_t *out, uint32_t n) {
    const store_core *c = s->core;
    page_result result;
    uint64_t ticket;
    do {
        page_context own = lend(s, &ticket);
        if (!own.key) {
            clear(out, n);
            return PAGE_BAD;
        }
        result = own.ops->open_part(&own, out, s->ct + (page << c->page_shift), s->first + page,
                                    version, tag_of(s, page), offset, n, last(s, page + 1));
    } while (!lent_back(c, ticket));
    return result;
}

/* Returns 0 when the page does not match its tag; the n bytes are zero then. Inline: a call more
 * would cost a small read a tenth. */
static inline __attribute__((always_inline)) int open_part(ccmem_store *s, shard *sh, uint64_t page,
                                                           uint64_t version, uint32_t offset,
                                                           uint8_t *out, uint32_t n) {
    const store_core *c = s->core;
    if (version == 0) {
        clear(out, n);
        return never_written(s, page);
    }
    page_result result;
    if (__builtin_expect(!c->late, 1)) {
        const page_context *with = core_page(c, version);
        result = with->ops->open_part(with, out, s->ct + (page << c->page_shift), s->first + page,
                                      version, tag_of(s, page), offset, n, last(s, page + 1));
    } else {
        result = open_part_late(s, page, version, offset, out, n);
    }
    if (__builtin_expect(result == PAGE_HIT, 1))
        add(&sh->count.tweak_hits, 1);
    else if (result == PAGE_MISS)
        add(&sh->count.tweak_misses, 1);
    add(&sh->count.pages_opened, 1);
    return result != PAGE_BAD;
}

/* Of a store whose pages are sealed once: no writer ever comes, so nothing is looked at again. */
static __attribute__((noinline)) ccmem_status read_part_once(ccmem_store *s, shard *sh,
                                                             uint64_t page, uint32_t offset,
                                                             uint8_t *out, uint32_t n) {
    return __builtin_expect(open_part(s, sh, page, SEALED_ONCE, offset, out, n), 1)
               ? CCMEM_OK
               : store_damaged(sh, page, SEALED_ONCE);
}

ccmem_status store_read_part(ccmem_store *s, shard *sh, uint64_t page, uint32_t offset,
                             uint8_t *out, uint32_t n) {
    if (!s->version)
        return read_part_once(s, sh, page, offset, out, n);
    uint64_t *word = &s->version[page], v;
    /* Where a touch of `out` may have a page opened, no lock may be held. */
    for (int tries = 0; tries < READ_RETRIES || ranges_touch(out, n); tries++) {
        v = stable_version(s, page);
        if (__builtin_expect((v & LOCK) != 0, 0)) {
            clear(out, n);
            return store_damaged(sh, page, v);
        }
        int good = open_part(s, sh, page, v, offset, out, n);
        if (unchanged(word, v))
            return __builtin_expect(good, 1) ? CCMEM_OK : store_damaged(sh, page, v);
        add(&sh->count.retries, 1);
    }
    if (!lock_pages(s, page, 1, &v, 0)) {
        clear(out, n);
        return store_damaged(sh, page, v);
    }
    int good = open_part(s, sh, page, v, offset, out, n);
    publish(s, page, &v, 1);
    return good ? CCMEM_OK : store_damaged(sh, page, v);
}

/* Opens pages first + [0, n), all written or all never written, all under one key; returns the mask
 * of those that are bad. */
static uint64_t open_run(ccmem_store *s, shard *sh, const page_context *with, uint64_t first,
                         const uint64_t *v, uint8_t *to, uint64_t n, unsigned flags) {
    const store_core *c = s->core;
    uint64_t bad = 0;
    flags |= last(s, first + n);
    if (v[0] && c->late) {
        uint64_t ticket;
        do {
            page_context own = lend(s, &ticket);
            if (!own.key) {
                memset(to, 0, n << c->page_shift);
                return n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0;
            }
            bad = own.ops->open(&own, to, s->ct + (first << c->page_shift), s->first + first, v,
                                s->tag + first, n, flags);
        } while (!lent_back(c, ticket));
        add(&sh->count.pages_opened, n);
    } else if (v[0]) {
        bad = with->ops->open(with, to, s->ct + (first << c->page_shift), s->first + first, v,
                              s->tag ? s->tag + first : NULL, n, flags);
        add(&sh->count.pages_opened, n);
    } else {
        memset(to, 0, n << s->core->page_shift);
        for (uint64_t i = 0; i < n; i++)
            bad |= (uint64_t)!never_written(s, first + i) << i;
    }
    return bad;
}

ccmem_status store_read_batch(ccmem_store *s, shard *sh, uint64_t first, uint8_t *out, uint64_t n,
                              unsigned flags) {
    const store_core *c = s->core;
    uint64_t v[PAGE_BATCH], bad = 0;
    for (uint64_t i = 0; i < n; i++)
        v[i] = version_now(s, first + i);
    for (uint64_t i = 0, run; i < n; i += run) {
        const page_context *with = core_page(c, v[i]);
        for (run = 1; i + run < n && !v[i + run] == !v[i] && with == core_page(c, v[i + run]);)
            run++;
        bad |= open_run(s, sh, with, first + i, v + i, out + (i << c->page_shift), run, flags) << i;
    }
    for (uint64_t i = 0; i < n; i++) {
        if (__builtin_expect(!still(s, first + i, v[i]) || (v[i] & LOCK), 0)) {
            add(&sh->count.retries, 1);
            ccmem_status status =
                store_read_part(s, sh, first + i, 0, out + (i << c->page_shift), c->page.size);
            if (status != CCMEM_OK)
                return status;
        } else if (__builtin_expect(bad >> i & 1, 0)) {
            return store_damaged(sh, first + i, v[i]);
        }
    }
    return CCMEM_OK;
}

_Static_assert((int)STORE_OPEN_MAX <= (int)PAGE_BATCH, "a call is one batch");

ccmem_status store_open_pages(ccmem_store *s, uint64_t first, uint8_t *to, uint64_t n) {
    return store_read_batch(s, my_shard(s->core), first, to, n, 0);
}

ccmem_status store_open_apart(ccmem_store *s, uint64_t first, uint8_t *to, uint64_t n) {
    return store_read_batch(s, my_shard(s->core), first, to, n, PAGE_LAST);
}

size_t store_fused_step(const ccmem_store *s) {
    return s->core->page.ops->fused_step(&s->core->page);
}

ccmem_status store_open_fused(ccmem_store *s, uint64_t first, uint64_t n, ccmem_dtype dtype,
                              const fused_rows *rows, int *done) {
    const store_core *c = s->core;
    shard *sh = my_shard(s->core);
    uint64_t v[STORE_OPEN_MAX];
    *done = 0;
    for (uint64_t i = 0; i < n; i++) {
        v[i] = version_now(s, first + i);
        if (!v[i] || (v[i] & LOCK))
            return CCMEM_OK;
    }
    const page_context *with = core_page(c, v[0]);
    for (uint64_t i = 1; i < n; i++)
        if (core_page(c, v[i]) != with)
            return CCMEM_OK;
    page_context own = *with;
    uint64_t ticket = 0;
    if (c->late) {
        own = lend(s, &ticket);
        if (!own.key)
            return store_damaged(my_shard(s->core), first, v[0]);
    }
    size_t good = own.ops->fused(&own, s->ct + (first << c->page_shift), s->first + first, v,
                                 s->tag ? s->tag + first : NULL, n, dtype, rows);
    if (c->late && !lent_back(c, ticket))
        return CCMEM_OK; /* not done: store_open_pages() will do */
    add(&sh->count.pages_opened, n);
    for (uint64_t i = 0; i < n; i++)
        if (!still(s, first + i, v[i])) {
            add(&sh->count.retries, 1);
            return CCMEM_OK;
        }
    if (good < n)
        return store_damaged(sh, first + good, v[good]);
    *done = 1;
    return CCMEM_OK;
}
