/* SPDX-License-Identifier: Apache-2.0
 *
 * Where ciphertext, versions and tags live, and who may touch them when.
 *
 * Each page has one 64-bit word: its version, and in the top bit a writer's lock. Writers take the
 * lock, seal the page under version + 1 and publish that version, which drops the lock. Readers
 * take nothing: they decrypt under the version they saw and look again afterwards, as with a
 * sequence lock, and repeat when a writer came between. So a read costs no locked instruction, and
 * readers never wait for each other; a version also never repeats, which makes the second look
 * conclusive. A page that does not match its tag is an error only if no writer came between.
 *
 * The word may be damaged like any memory. A lock that is set while no thread writes in the page's
 * group is such damage, and ends as an error, not in a wait without end. A version that damage puts
 * back must not be used for a second time: the last one that each page was sealed under is kept
 * apart as well, in a copy that is damaged as easily. The two are equal whenever no writer is at
 * the page, and used_version() says what is done when they are not.
 *
 * A store over pages that others may have as well (store_over()) is never written: two processes
 * that write the same page would use a nonce twice. It has no record of what was sealed. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "memory/ranges.h"
#include "memory/secret.h"
#include "platform/cpu.h"
#include "platform/fork.h"
#include "platform/lost.h"
#include "platform/random.h"
#include "platform/threads.h"
#include "platform/vmem.h"
#include "store/core.h"

static const uint64_t LOCK = (uint64_t)1 << 63;
static const uint64_t VERSION_MAX = ((uint64_t)1 << 63) - 1;

enum {
    BATCH_BYTES = 256 << 10, /* pages locked, checked and encrypted at a time: an L2's worth */
    GRAIN_BYTES = 512 << 10, /* the least that is worth another thread */
    /* From this size on a bulk call writes around the caches. Below it the destination may still
     * be cached when it is used next, and non-temporal stores would cost more than they save. */
    STREAM_BYTES = 4 << 20,
    READ_RETRIES = 16,      /* before a reader takes the writers' lock */
    STAGING_BYTES = 1 << 20 /* a multiple of every page size */
};

/* As errno: the page that the last failed call in this thread was about. */
static _Thread_local ccmem_failure last_failure;

ccmem_failure ccmem_last_failure(void) { return last_failure; }

void store_set_failure(ccmem_failure failure) { last_failure = failure; }

/* Why a core is not to be used in this process. */
static __attribute__((noinline, cold)) ccmem_status alien(const store_core *core) {
    return core == &store_gone ? CCMEM_ERR_CLOSED : CCMEM_ERR_FORK;
}

static shard *my_shard(store_core *core) {
    static unsigned threads; /* atomic */
    /* One word of static TLS, so that counting costs no call in a shared object. */
    static _Thread_local unsigned self __attribute__((tls_model("initial-exec")));
    if (__builtin_expect(!self, 0))
        self = 1 + __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED);
    return &core->shards[self % SHARDS];
}

static inline void add(uint64_t *counter, uint64_t n) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* ---- page words ------------------------------------------------------------------------------ */

/* The order of accesses, in short; docs/design/sequence-lock.md has the proof.
 *
 *   reader: R1 load the word, acquire      writer: W1 enter the slot   W2 compare-and-swap LOCK in
 *           R2 open the page                       W3 fence, release   W4 store page, tag, copy
 *           R3 fence, acquire                      W5 sfence in kernels that store around caches
 *           R4 load the word again                 W6 store the version, release   W7 leave
 *
 * If R2 loads what some W4 stored, W3 and R3 make R4 see that writer's W2 or what came later, which
 * is not what R1 saw, since versions never come twice: the read is repeated. If R1 saw a version,
 * W6 and R1 make R2 see all of it. The page itself is loaded by ordinary loads, which the kernels
 * do through pointers between R1 and R3, each byte once. */

static const uint64_t ENTER = ((uint64_t)1 << 32) + 1;

static inline uint64_t *slot_of(ccmem_store *s, uint64_t page) {
    return &s->core->slots[(s->first + page) / PAGE_BATCH % SLOTS];
}

/* 1 when nobody holds the lock that the page's word shows: nobody was in its slot before the look
 * at the word, and nobody had come by the time after it. *slot is what the slot was. */
static int orphaned(ccmem_store *s, uint64_t page, uint64_t *slot) {
    *slot = __atomic_load_n(slot_of(s, page), __ATOMIC_ACQUIRE);
    return (uint32_t)*slot == 0 && (__atomic_load_n(&s->version[page], __ATOMIC_ACQUIRE) & LOCK) &&
           __atomic_load_n(slot_of(s, page), __ATOMIC_ACQUIRE) == *slot;
}

/* One turn of waiting for the lock of a page. 0 when nobody holds it. */
static int wait_for_writer(ccmem_store *s, uint64_t page, unsigned *spins, uint64_t *slot) {
    if (++*spins % 64) {
        cpu_relax();
        return 1;
    }
    if (orphaned(s, page, slot))
        return 0;
    sched_yield();
    return 1;
}

static ccmem_status damaged(shard *sh, uint64_t page, uint64_t version) {
    add(&sh->count.integrity_failures, 1);
    last_failure = (ccmem_failure){page, version};
    return CCMEM_ERR_INTEGRITY;
}

/* The page's version, once no writer holds it; with LOCK when nobody will ever drop it. */
static inline uint64_t stable_version(ccmem_store *s, uint64_t page) {
    uint64_t v = __atomic_load_n(&s->version[page], __ATOMIC_ACQUIRE), slot;
    unsigned spins = 0;
    while (__builtin_expect((v & LOCK) != 0, 0)) {
        if (!wait_for_writer(s, page, &spins, &slot))
            return v;
        v = __atomic_load_n(&s->version[page], __ATOMIC_ACQUIRE);
    }
    return v;
}

static inline int unchanged(const uint64_t *word, uint64_t version) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __builtin_expect(__atomic_load_n(word, __ATOMIC_RELAXED) == version, 1);
}

/* Locks pages from `first` on for writing, as many of n as nobody holds, none beyond the group, and
 * returns how many; v[i] is what page i had for a version. It never waits, so writers that wait
 * hold nothing and wait for no one in a circle. */
static uint64_t lock_free_pages(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v) {
    uint64_t i = 0, left = PAGE_BATCH - (s->first + first) % PAGE_BATCH;
    v[0] = __atomic_load_n(&s->version[first], __ATOMIC_RELAXED);
    if (v[0] & LOCK)
        return 0;
    __atomic_fetch_add(slot_of(s, first), ENTER, __ATOMIC_SEQ_CST);
    for (; i < n && i < left; i++) {
        uint64_t *word = &s->version[first + i];
        v[i] = __atomic_load_n(word, __ATOMIC_RELAXED);
        if ((v[i] & LOCK) || !__atomic_compare_exchange_n(word, &v[i], v[i] | LOCK, 0,
                                                          __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            break;
    }
    if (i) /* no page may change before its lock shows */
        __atomic_thread_fence(__ATOMIC_RELEASE);
    else
        __atomic_fetch_sub(slot_of(s, first), 1, __ATOMIC_RELEASE);
    return i;
}

/* The same for at least one page, waiting for its writer. A lock that nobody will ever drop is
 * taken over with `seize`, by the one thread that enters its slot next, and v[0] keeps it; without,
 * 0 is returned, and v[0] is what the page's word holds. */
static uint64_t lock_pages(ccmem_store *s, uint64_t first, uint64_t n, uint64_t *v, int seize) {
    unsigned spins = 0;
    uint64_t slot, locked;
    for (;;) {
        if ((locked = lock_free_pages(s, first, n, v)))
            return locked;
        if (!(v[0] & LOCK) || wait_for_writer(s, first, &spins, &slot))
            continue;
        if (!seize)
            return 0;
        if (__atomic_fetch_add(slot_of(s, first), ENTER, __ATOMIC_SEQ_CST) == slot) {
            v[0] = __atomic_load_n(&s->version[first], __ATOMIC_RELAXED);
            __atomic_thread_fence(__ATOMIC_RELEASE); /* as in lock_free_pages() */
            return 1;
        }
        __atomic_fetch_sub(slot_of(s, first), 1, __ATOMIC_RELEASE);
    }
}

/* 1 when the page is what was sealed under `version`, or for 0 was never sealed, as far as its tag
 * says; a cipher without tags has to believe it. */
static int vouched(const ccmem_store *s, uint64_t page, uint64_t version) {
    static const page_tag none;
    if (!s->tag)
        return 1;
    if (!version)
        return ccmem_equal(s->tag[page], none, sizeof none);
    const store_core *c = s->core;
    return c->page.ops->open_part(&c->page, NULL, s->ct + (page << c->page_shift), s->first + page,
                                  version, s->tag[page], 0, 0) != PAGE_BAD;
}

/* used_version() of a page one of whose two numbers leaves no version to use. */
static __attribute__((noinline)) uint64_t vouched_version(const ccmem_store *s, uint64_t page,
                                                          uint64_t word, uint64_t sealed) {
    const uint64_t limit = s->core->version_limit;
    if (word > limit && sealed < limit && vouched(s, page, sealed))
        return sealed;
    if (sealed > limit && word < limit && vouched(s, page, word))
        return word;
    return limit;
}

/* The last version that a page may have been sealed under, as its word and the copy tell: the next
 * one is used for the first time. version_limit: there is none, or nothing tells which it would be.
 *
 * At most one of the two is damaged, in whatever way. Then the higher one was used last, or is
 * higher than what was. (That the page opens under the lower one proves nothing: page, tag and word
 * may have been put back together.) The top bit is part of no version, so this holds without it as
 * well. That leaves a number without the top bit that is not below the limit, say a word of ones.
 * If the word as a whole is above the limit, no page was ever sealed under it: it is the one that
 * is damaged, and the other is whole. As that is the only witness, the tag must vouch for it. */
static inline uint64_t used_version(const ccmem_store *s, uint64_t page, uint64_t word) {
    uint64_t sealed = __atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED);
    uint64_t v = word & VERSION_MAX, copy = sealed & VERSION_MAX, used = copy > v ? copy : v;
    if (__builtin_expect(used < s->core->version_limit, 1))
        return used;
    return vouched_version(s, page, word, sealed);
}

/* Gives the n pages that were locked together their versions, which drops the locks. */
static inline void publish(ccmem_store *s, uint64_t first, const uint64_t *v, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        __atomic_store_n(&s->version[first + i], v[i], __ATOMIC_RELEASE);
    __atomic_fetch_sub(slot_of(s, first), 1, __ATOMIC_RELEASE);
}

/* ---- part of a page -------------------------------------------------------------------------- */

/* A page marked as never written has no tag; a version that was put back to 0 leaves one behind. A
 * read-only store has no such pages. */
static __attribute__((noinline)) int never_written(const ccmem_store *s, uint64_t page) {
    static const page_tag none;
    if (s->core->read_only)
        return 0;
    return !s->tag || (ccmem_equal(s->tag[page], none, sizeof none) &&
                       !__atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED));
}

static inline uint8_t *tag_of(const ccmem_store *s, uint64_t page) {
    return s->tag ? s->tag[page] : NULL;
}

/* n may be 0, and out NULL then, which memset() does not take. */
static inline void clear(uint8_t *out, uint32_t n) {
    if (n)
        memset(out, 0, n);
}

/* One go at pages with a subkey that is derived when it is used: the context for it. Until
 * lent_back() is true, what was done with it means nothing. */
static page_context lend(ccmem_store *s, uint64_t *ticket) {
    lost_guard();
    page_context page = s->core->page;
    page.key = subkey_borrow(s->core->late, &((file_store *)s)->key, ticket);
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
        result = own.ops->open_part(&own, out, s->ct + (page << c->page_shift), s->first + page,
                                    version, tag_of(s, page), offset, n);
    } while (!lent_back(c, ticket));
    return result;
}

/* 0 when the page does not match its tag; the n bytes are zero then. Inline: a call
 * more would cost a small read a tenth. */
static inline __attribute__((always_inline)) int open_part(ccmem_store *s, shard *sh, uint64_t page,
                                                           uint64_t version, uint32_t offset,
                                                           uint8_t *out, uint32_t n) {
    const store_core *c = s->core;
    if (version == 0) {
        clear(out, n);
        return never_written(s, page);
    }
    page_result result;
    if (__builtin_expect(!c->late, 1))
        result = c->page.ops->open_part(&c->page, out, s->ct + (page << c->page_shift),
                                        s->first + page, version, tag_of(s, page), offset, n);
    else
        result = open_part_late(s, page, version, offset, out, n);
    if (__builtin_expect(result == PAGE_HIT, 1))
        add(&sh->count.tweak_hits, 1);
    else if (result == PAGE_MISS)
        add(&sh->count.tweak_misses, 1);
    add(&sh->count.pages_opened, 1);
    return result != PAGE_BAD;
}

static ccmem_status read_part(ccmem_store *s, shard *sh, uint64_t page, uint32_t offset,
                              uint8_t *out, uint32_t n) {
    uint64_t *word = &s->version[page], v;
    /* Where a touch of `out` may have a page opened, no lock may be held. */
    for (int tries = 0; tries < READ_RETRIES || ranges_touch(out, n); tries++) {
        v = stable_version(s, page);
        if (__builtin_expect((v & LOCK) != 0, 0)) {
            clear(out, n);
            return damaged(sh, page, v);
        }
        int good = open_part(s, sh, page, v, offset, out, n);
        if (unchanged(word, v))
            return __builtin_expect(good, 1) ? CCMEM_OK : damaged(sh, page, v);
        add(&sh->count.retries, 1);
    }
    if (!lock_pages(s, page, 1, &v, 0)) {
        clear(out, n);
        return damaged(sh, page, v);
    }
    int good = open_part(s, sh, page, v, offset, out, n);
    publish(s, page, &v, 1);
    return good ? CCMEM_OK : damaged(sh, page, v);
}

/* `anew`: the runs are all that the page is to hold, whatever became of it, and the rest zeros. */
static ccmem_status write_parts(ccmem_store *s, shard *sh, uint64_t page, const uint64_t *offsets,
                                size_t count, const uint8_t *data, uint32_t n, int anew) {
    const store_core *c = s->core;
    ccmem_status status = CCMEM_OK;
    uint64_t v;
    if (!lock_pages(s, page, 1, &v, anew))
        return damaged(sh, page, v);
    uint64_t used = used_version(s, page, v);
    if (used >= s->core->version_limit)
        status = CCMEM_ERR_VERSION;
    else if ((v == 0 && !anew && !never_written(s, page)) ||
             c->page.ops->modify(&c->page, s->ct + (page << c->page_shift), data, s->first + page,
                                 anew ? 0 : v, used + 1, tag_of(s, page), offsets, count,
                                 n) == PAGE_BAD)
        status = damaged(sh, page, v);
    if (status == CCMEM_OK) {
        v = used + 1;
        __atomic_store_n(store_sealed(s, page), v, __ATOMIC_RELAXED);
    }
    publish(s, page, &v, 1);
    if (status == CCMEM_OK)
        add(&sh->count.pages_sealed, 1);
    return status;
}

static ccmem_status write_part(ccmem_store *s, shard *sh, uint64_t page, uint64_t offset,
                               const uint8_t *data, uint32_t n, int anew) {
    return write_parts(s, sh, page, &offset, 1, data, n, anew);
}

uint64_t store_used_version(const ccmem_store *s, uint64_t page) {
    return used_version(s, page, __atomic_load_n(&s->version[page], __ATOMIC_RELAXED));
}

ccmem_status store_clear(ccmem_store *s, uint64_t n) {
    const uint8_t zero = 0;
    shard *sh = my_shard(s->core);
    ccmem_status status = CCMEM_OK;
    for (uint64_t page = 0; page < n && status == CCMEM_OK; page++)
        status = write_part(s, sh, page, 0, &zero, 1, 1);
    return status;
}

/* ---- whole pages ----------------------------------------------------------------------------- */

typedef struct bulk {
    ccmem_store *store;
    uint64_t first;
    uint8_t *out;
    const uint8_t *data;
    uint8_t *bad;      /* one byte a page, for verifying */
    uint64_t failures; /* atomic */
    unsigned flags;
    outcome end;
} bulk;

static uint64_t batch_pages(const ccmem_store *s) {
    uint64_t n = BATCH_BYTES >> s->core->page_shift;
    return n < PAGE_BATCH ? n : PAGE_BATCH;
}

/* Pages first + [0, n), all written or all never written. The mask of those that are bad. */
static uint64_t open_run(ccmem_store *s, shard *sh, uint64_t first, const uint64_t *v, uint8_t *to,
                         uint64_t n, unsigned flags) {
    const store_core *c = s->core;
    uint64_t bad = 0;
    if (v[0] && c->late) {
        uint64_t ticket;
        do {
            page_context own = lend(s, &ticket);
            bad = own.ops->open(&own, to, s->ct + (first << c->page_shift), s->first + first, v,
                                s->tag + first, n, flags);
        } while (!lent_back(c, ticket));
        add(&sh->count.pages_opened, n);
    } else if (v[0]) {
        bad = c->page.ops->open(&c->page, to, s->ct + (first << c->page_shift), s->first + first, v,
                                s->tag ? s->tag + first : NULL, n, flags);
        add(&sh->count.pages_opened, n);
    } else {
        memset(to, 0, n << s->core->page_shift);
        for (uint64_t i = 0; i < n; i++)
            bad |= (uint64_t)!never_written(s, first + i) << i;
    }
    return bad;
}

static ccmem_status read_batch(ccmem_store *s, shard *sh, uint64_t first, uint8_t *out, uint64_t n,
                               unsigned flags) {
    const store_core *c = s->core;
    uint64_t v[PAGE_BATCH], bad = 0;
    for (uint64_t i = 0; i < n; i++)
        v[i] = stable_version(s, first + i);
    for (uint64_t i = 0, run; i < n; i += run) {
        for (run = 1; i + run < n && !v[i + run] == !v[i];)
            run++;
        bad |= open_run(s, sh, first + i, v + i, out + (i << s->core->page_shift), run, flags) << i;
    }
    for (uint64_t i = 0; i < n; i++) {
        if (__builtin_expect(!unchanged(&s->version[first + i], v[i]) || (v[i] & LOCK), 0)) {
            add(&sh->count.retries, 1);
            ccmem_status status =
                read_part(s, sh, first + i, 0, out + (i << c->page_shift), c->page.size);
            if (status != CCMEM_OK)
                return status;
        } else if (__builtin_expect(bad >> i & 1, 0)) {
            return damaged(sh, first + i, v[i]);
        }
    }
    return CCMEM_OK;
}

static void read_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s->core);
    uint64_t most = batch_pages(s);
    for (uint64_t i = begin, n; i < end && !outcome_stopped(&b->end); i += n) {
        n = end - i < most ? end - i : most;
        ccmem_status status =
            read_batch(s, sh, b->first + i, b->out + (i << s->core->page_shift), n, b->flags);
        if (status != CCMEM_OK)
            outcome_stop(&b->end, status);
    }
}

/* Pages first + [0, n), which are locked at the versions v; they are published here. */
static ccmem_status write_locked(ccmem_store *s, shard *sh, uint64_t first, const uint8_t *data,
                                 uint64_t *v, uint64_t n, unsigned flags) {
    const store_core *c = s->core;
    ccmem_status status = CCMEM_OK;
    uint64_t next[PAGE_BATCH];
    for (uint64_t i = 0; i < n; i++) {
        next[i] = used_version(s, first + i, v[i]) + 1;
        if (next[i] > s->core->version_limit)
            status = CCMEM_ERR_VERSION;
    }
    if (status == CCMEM_OK) {
        for (uint64_t i = 0; i < n; i++) {
            v[i] = next[i];
            __atomic_store_n(store_sealed(s, first + i), v[i], __ATOMIC_RELAXED);
        }
        c->page.ops->seal(&c->page, s->ct + (first << c->page_shift), data, s->first + first, v,
                          s->tag ? s->tag + first : NULL, n, flags);
        add(&sh->count.pages_sealed, n);
    }
    publish(s, first, v, n);
    return status;
}

static ccmem_status write_batch(ccmem_store *s, shard *sh, uint64_t first, const uint8_t *data,
                                uint64_t n, unsigned flags) {
    ccmem_status status = CCMEM_OK;
    for (uint64_t i = 0, locked; i < n && status == CCMEM_OK; i += locked) {
        uint64_t v[PAGE_BATCH];
        locked = lock_pages(s, first + i, n - i, v, 1);
        const uint8_t *from = data + (i << s->core->page_shift);
        status = write_locked(s, sh, first + i, from, v, locked, flags);
    }
    return status;
}

static void write_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s->core);
    uint64_t most = batch_pages(s);
    for (uint64_t i = begin, n; i < end && !outcome_stopped(&b->end); i += n) {
        /* Locks end with their group. */
        uint64_t left = PAGE_BATCH - (s->first + b->first + i) % PAGE_BATCH;
        n = end - i < most ? end - i : most;
        n = n < left ? n : left;
        ccmem_status status =
            write_batch(s, sh, b->first + i, b->data + (i << s->core->page_shift), n, b->flags);
        if (status != CCMEM_OK)
            outcome_stop(&b->end, status);
    }
}

/* CCMEM_ERR_INTEGRITY: the page's version and the copy of it differ, though no writer is at it. */
static ccmem_status compare_copy(ccmem_store *s, shard *sh, uint64_t page) {
    uint64_t v, copy;
    if (s->core->read_only)
        return CCMEM_OK;
    for (int tries = 0; tries < READ_RETRIES; tries++) {
        v = stable_version(s, page);
        copy = __atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED);
        if (copy == v)
            return CCMEM_OK;
        if (unchanged(&s->version[page], v))
            return damaged(sh, page, v);
    }
    if (!lock_pages(s, page, 1, &v, 0))
        return damaged(sh, page, v);
    copy = __atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED);
    publish(s, page, &v, 1);
    return copy == v ? CCMEM_OK : damaged(sh, page, v);
}

static void verify_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s->core);
    uint64_t failures = 0;
    for (uint64_t i = begin; i < end; i++) {
        b->bad[i] = read_part(s, sh, b->first + i, 0, NULL, 0) != CCMEM_OK ||
                    compare_copy(s, sh, b->first + i) != CCMEM_OK;
        failures += b->bad[i];
    }
    __atomic_fetch_add(&b->failures, failures, __ATOMIC_RELAXED);
}

/* ---- reading and writing --------------------------------------------------------------------- */

/* A byte range as whole pages and the parts before and after them. */
typedef struct range {
    uint64_t first, pages; /* whole pages */
    uint32_t head, tail;   /* bytes before and after */
    uint32_t head_offset;
    int ends; /* at the end of the store: its last page is covered, though it may not be filled */
} range;

static range split(const ccmem_store *s, uint64_t offset, uint64_t n) {
    range r = {0};
    uint32_t size = s->core->page.size;
    r.ends = offset + n == s->nbytes;
    r.first = offset >> s->core->page_shift;
    r.head_offset = (uint32_t)(offset & (size - 1));
    if (r.head_offset || n < size) {
        r.head = (uint32_t)(n < size - r.head_offset ? n : size - r.head_offset);
        r.first++;
        n -= r.head;
    }
    r.pages = n >> s->core->page_shift;
    r.tail = (uint32_t)(n & (size - 1));
    return r;
}

static ccmem_status run_bulk(bulk *b, uint64_t pages, parallel_body body, int alone) {
    const ccmem_store *s = b->store;
    b->flags = (pages << s->core->page_shift) >= STREAM_BYTES ? PAGE_STREAM : 0;
    if (alone)
        body(b, 0, pages);
    else
        parallel_for(pages, GRAIN_BYTES >> s->core->page_shift, body, b);
    return outcome_end(&b->end);
}

static inline ccmem_status check_call(const ccmem_store *s, const store_core *c, uint64_t offset,
                                      uint64_t n) {
    if (__builtin_expect(fork_alien(c->generation), 0))
        return alien(s->core);
    if (__builtin_expect(n > s->nbytes || offset > s->nbytes - n, 0))
        return CCMEM_ERR_RANGE;
    return CCMEM_OK;
}

static inline ccmem_status read_range(ccmem_store *s, uint64_t offset, void *out, uint64_t n,
                                      int alone) {
    store_core *c = s->core;
    ccmem_status status = check_call(s, c, offset, n);
    if (status != CCMEM_OK)
        return status;
    shard *sh = my_shard(c);
    uint8_t *to = out;
    add(&sh->count.reads, 1);
    uint32_t in_page = (uint32_t)(offset & (c->page.size - 1));
    if (n <= c->page.size - in_page) {
        if (n)
            status = read_part(s, sh, offset >> c->page_shift, in_page, to, (uint32_t)n);
        if (__builtin_expect(status == CCMEM_OK, 1))
            add(&sh->count.bytes_read, n);
        return status;
    }
    range r = split(s, offset, n);
    if (r.head)
        status = read_part(s, sh, r.first - 1, r.head_offset, to, r.head);
    if (status == CCMEM_OK && r.pages) {
        bulk b = {.store = s, .first = r.first, .out = to + r.head};
        status = run_bulk(&b, r.pages, read_pages, alone);
    }
    if (status == CCMEM_OK && r.tail)
        status = read_part(s, sh, r.first + r.pages, 0, to + (n - r.tail), r.tail);
    if (status == CCMEM_OK)
        add(&sh->count.bytes_read, n);
    else
        ccmem_wipe(out, n); /* the good pages too: no part of a refused read is handed out */
    return status;
}

ccmem_status ccmem_store_read(ccmem_store *s, uint64_t offset, void *out, uint64_t n) {
    return read_range(s, offset, out, n, 0);
}

ccmem_status store_read_alone(ccmem_store *s, uint64_t offset, void *out, uint64_t n) {
    return read_range(s, offset, out, n, 1);
}

void store_prefetch(const ccmem_store *s, uint64_t offset, uint64_t n) {
    enum {
        LINE = 64,
        LINES = 8
    }; /* the rest is left to the hardware, which sees a stream by then */
    uint64_t page = offset >> s->core->page_shift;
    __builtin_prefetch(&s->version[page]);
    if (s->tag) {
        /* A page is read from its start, whatever part of it is wanted. */
        __builtin_prefetch(s->tag[page]);
        n += offset - (page << s->core->page_shift);
        offset = page << s->core->page_shift;
    } else if (s->core->page.cache.entries) {
        const tweak_cache *cache = &s->core->page.cache;
        __builtin_prefetch(&cache->entries[(s->first + page) & cache->mask]);
    }
    for (uint64_t i = 0; i < n && i < LINES * LINE; i += LINE)
        __builtin_prefetch(s->ct + offset + i);
}

/* Looks for room in all pages before the first is touched, so that a refused write changes nothing.
 */
static ccmem_status check_versions(ccmem_store *s, uint64_t offset, uint64_t n) {
    uint64_t last = (offset + n - 1) >> s->core->page_shift, v, used;
    for (uint64_t p = offset >> s->core->page_shift; p <= last; p++) {
        do {
            v = stable_version(s, p);
            used = used_version(s, p, v);
        } while (used >= s->core->version_limit && !unchanged(&s->version[p], v));
        if (used >= s->core->version_limit)
            return CCMEM_ERR_VERSION;
    }
    return CCMEM_OK;
}

/* A page that is covered in part has to be opened first. All of them are looked at before any page
 * changes, so that a refused write changes nothing. */
static ccmem_status check_parts(ccmem_store *s, shard *sh, const range *r) {
    ccmem_status status = CCMEM_OK;
    if (!s->tag || (r->head != 0) + (r->pages != 0) + (r->tail != 0) < 2)
        return CCMEM_OK;
    if (r->head)
        status = read_part(s, sh, r->first - 1, 0, NULL, 0);
    if (status == CCMEM_OK && r->tail && !r->ends)
        status = read_part(s, sh, r->first + r->pages, 0, NULL, 0);
    return status;
}

ccmem_status store_write_present(ccmem_store *s, uint64_t offset, const void *data, uint64_t n,
                                 int alone) {
    ccmem_status status = check_call(s, s->core, offset, n);
    const uint8_t *from = data;
    if (status != CCMEM_OK)
        return status;
    if (s->core->read_only)
        return CCMEM_ERR_READONLY;
    shard *sh = my_shard(s->core);
    if (n)
        status = check_versions(s, offset, n);
    if (status != CCMEM_OK)
        return status;
    range r = split(s, offset, n);
    status = check_parts(s, sh, &r);
    if (status == CCMEM_OK && r.head)
        status = write_part(s, sh, r.first - 1, r.head_offset, from, r.head,
                            r.ends && !r.head_offset && r.head == n);
    if (status == CCMEM_OK && r.pages) {
        bulk b = {.store = s, .first = r.first, .data = from + r.head};
        status = run_bulk(&b, r.pages, write_pages, alone);
    }
    if (status == CCMEM_OK && r.tail)
        status = write_part(s, sh, r.first + r.pages, 0, from + (n - r.tail), r.tail, r.ends);
    if (status != CCMEM_OK)
        return status;
    add(&sh->count.writes, 1);
    add(&sh->count.bytes_written, n);
    return CCMEM_OK;
}

/* By way of memory of its own, for a source that nobody may touch while he holds locks. */
static ccmem_status write_staged(ccmem_store *s, uint64_t offset, const uint8_t *data, uint64_t n) {
    uint8_t *staging;
    uint64_t piece;
    ccmem_status status = check_versions(s, offset, n);
    if (status == CCMEM_OK)
        status = ccmem_plain_alloc(n < STAGING_BYTES ? n : STAGING_BYTES, &staging);
    if (status != CCMEM_OK)
        return status;
    for (; n && status == CCMEM_OK; offset += piece, data += piece, n -= piece) {
        piece = STAGING_BYTES - offset % STAGING_BYTES; /* no page is written in two parts */
        piece = piece < n ? piece : n;
        memcpy(staging, data, piece);
        status = store_write_present(s, offset, staging, piece, 0);
    }
    ccmem_plain_free(staging);
    return status;
}

ccmem_status ccmem_store_write(ccmem_store *s, uint64_t offset, const void *data, uint64_t n) {
    ccmem_status status = check_call(s, s->core, offset, n);
    if (status == CCMEM_OK && n && ranges_touch(data, n))
        return s->core->read_only ? CCMEM_ERR_READONLY : write_staged(s, offset, data, n);
    return store_write_present(s, offset, data, n, 0);
}

int store_read_only(const ccmem_store *s) { return s->core->read_only; }

ccmem_status ccmem_store_verify(ccmem_store *s, uint64_t first, uint64_t count, uint8_t *bad,
                                uint64_t *failures) {
    if (fork_alien(s->core->generation))
        return alien(s->core);
    if (!s->tag && store_pages(s))
        return CCMEM_ERR_ARGUMENT;
    if (count > store_pages(s) || first > store_pages(s) - count)
        return CCMEM_ERR_RANGE;
    bulk b = {.store = s, .first = first, .bad = bad};
    ccmem_failure before = last_failure; /* the status is CCMEM_OK, so it tells of no page */
    if (count)
        (void)run_bulk(&b, count, verify_pages, 0);
    last_failure = before;
    *failures = b.failures;
    return CCMEM_OK;
}

uint32_t store_page_size(const ccmem_store *s) { return s->core->page.size; }

size_t store_dot_turn(const ccmem_store *s) { return s->core->page.ops->dot_turn(&s->core->page); }

ccmem_status store_dot(ccmem_store *s, uint64_t first, uint64_t n, ccmem_dtype dtype,
                       const dot_rows *dot, int *done) {
    const store_core *c = s->core;
    shard *sh = my_shard(s->core);
    uint64_t v[STORE_OPEN_MAX];
    *done = 0;
    for (uint64_t i = 0; i < n; i++) {
        v[i] = stable_version(s, first + i);
        if (!v[i] || (v[i] & LOCK))
            return CCMEM_OK;
    }
    page_context own = c->page;
    uint64_t ticket = 0;
    if (c->late)
        own = lend(s, &ticket);
    size_t good = own.ops->dot(&own, s->ct + (first << c->page_shift), s->first + first, v,
                               s->tag ? s->tag + first : NULL, n, dtype, dot);
    if (c->late && !lent_back(c, ticket))
        return CCMEM_OK; /* not done: store_open_pages() will do */
    add(&sh->count.pages_opened, n);
    for (uint64_t i = 0; i < n; i++)
        if (!unchanged(&s->version[first + i], v[i])) {
            add(&sh->count.retries, 1);
            return CCMEM_OK;
        }
    if (good < n)
        return damaged(sh, first + good, v[good]);
    *done = 1;
    return CCMEM_OK;
}

_Static_assert((int)STORE_OPEN_MAX <= (int)PAGE_BATCH, "a call is one batch");

ccmem_status store_open_pages(ccmem_store *s, uint64_t first, uint8_t *to, uint64_t n) {
    return read_batch(s, my_shard(s->core), first, to, n, 0);
}

ccmem_status store_write_in_page(ccmem_store *s, const uint64_t *offsets, size_t count,
                                 const void *data, uint32_t n) {
    if (s->core->read_only)
        return CCMEM_ERR_READONLY;
    shard *sh = my_shard(s->core);
    uint8_t *staging = NULL;
    ccmem_status status = CCMEM_OK;
    if (ranges_touch(data, (uint64_t)count * n)) {
        status = ccmem_plain_alloc((uint64_t)count * n, &staging);
        if (status != CCMEM_OK)
            return status;
        memcpy(staging, data, (size_t)count * n);
        data = staging;
    }
    status = write_parts(s, sh, offsets[0] >> s->core->page_shift, offsets, count, data, n, 0);
    ccmem_plain_free(staging);
    if (status == CCMEM_OK) {
        add(&sh->count.writes, 1);
        add(&sh->count.bytes_written, (uint64_t)count * n);
    }
    return status;
}

const store_core store_gone = {.generation = UINT64_MAX, .suite = NULL};

/* ---- life ------------------------------------------------------------------------------------ */

ccmem_status mapping_new(void *data, uint64_t n, ccmem_mapping *whole, ccmem_mapping **out) {
    ccmem_mapping *m = calloc(1, sizeof *m);
    if (!m)
        return CCMEM_ERR_NOMEM;
    *m = (ccmem_mapping){.refs = 1, .size = n, .data = data, .whole = whole};
    if (whole)
        __atomic_fetch_add(&whole->refs, 1, __ATOMIC_RELAXED);
    *out = m;
    return CCMEM_OK;
}

/* Tags, versions and what was sealed, neither dumped nor inherited. */
static ccmem_status new_records(const store_core *core, store_chunk *c) {
    const uint64_t tags = core->suite->is.tag_size;
    c->record_bytes = c->npages * (tags + 2 * sizeof *c->version);
    ccmem_status status = c->npages ? vmem_map_private(c->record_bytes, &c->records) : CCMEM_OK;
    if (status != CCMEM_OK || !c->npages)
        return status;
    c->tag = tags ? c->records : NULL;
    c->version = (uint64_t *)((uint8_t *)c->records + c->npages * tags);
    return CCMEM_OK;
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
    vmem_unmap(c->records, c->record_bytes);
    free(c);
    return status;
}

void chunk_free(const store_core *core, store_chunk *c) {
    if (!fork_alien(core->generation))
        vmem_unmap(c->records, c->record_bytes);
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
    /* The reference is this core's, whoever else has the key as const. */
    ccmem_status status =
        subkeys_open(late, (ccmem_key *)key, core->suite->is.name, page_size, &core->level);
    if (status != CCMEM_OK) {
        free(late);
        return status;
    }
    page_init_keyless(&core->page, cipher, ccmem_tier_active(), page_size);
    core->late = late;
    return CCMEM_OK;
}

ccmem_status core_new(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                      uint32_t page_size, store_core **out) {
    store_core *core;
    if (posix_memalign((void **)&core, _Alignof(store_core), sizeof *core))
        return CCMEM_ERR_NOMEM;
    memset(core, 0, sizeof *core);
    core->generation = fork_generation();
    core->page_shift = (uint32_t)__builtin_ctz(page_size);
    core->suite = page_suite_of(cipher);
    core->version_limit = VERSION_MAX;
    core->refs = 1;
    core->read_only = !id;
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
    if (!alien)
        secret_free(core->key);
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
        status = core_new(key, cipher, id, page_size, &core);
    if (status != CCMEM_OK)
        return status;
    if (version_limit)
        core->version_limit = version_limit;
    if (core->suite->tweaks)
        status = tweak_cache_init(&core->page.cache, tweak_cache_entries,
                                  (nbytes + page_size - 1) >> core->page_shift);
    if (status == CCMEM_OK)
        status = new_store(core, nbytes, out);
    if (status != CCMEM_OK)
        core_release(core);
    return status;
}

/* Looks at its own copy: the caller's may change meanwhile. */
static ccmem_status copy_records(ccmem_store *s, const void *versions, const void *tags) {
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

/* Gives back what a read-only store of this process took for its records. */
static void drop_records(const file_store *f, uint64_t npages) {
    if (npages > CCMEM_FILE_RECORDS_MAX)
        vmem_unmap(f->store.version, npages * CCMEM_FILE_RECORD_SIZE);
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
    made.version = records;
    made.tag = (page_tag *)(made.version + npages);
    f->store = made;
    status = copy_records(&f->store, versions, tags);
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

/* A part of what many stores lie in, or the only store's chunk. */
ccmem_mapping *ccmem_store_mapping(ccmem_store *s) {
    lost_guard(); /* others will touch the pages */
    const store_core *c = s->core;
    ccmem_mapping *whole = c->read_only ? s->pages : s->chunk ? s->chunk->pages : NULL, *part;
    if (!c->shared && !c->read_only) {
        __atomic_fetch_add(&whole->refs, 1, __ATOMIC_RELAXED);
        return whole;
    }
    if (mapping_new(s->ct, store_pages(s) << c->page_shift, whole, &part) != CCMEM_OK)
        return NULL;
    return part;
}

const uint8_t *ccmem_mapping_data(const ccmem_mapping *m) { return m->data; }

uint64_t ccmem_mapping_size(const ccmem_mapping *m) { return m->size; }

void ccmem_mapping_release(ccmem_mapping *m) {
    while (m && __atomic_fetch_sub(&m->refs, 1, __ATOMIC_ACQ_REL) == 1) {
        ccmem_mapping *whole = m->whole;
        if (!whole)
            vmem_unmap(m->data, m->size); /* of a part without bytes: NULL */
        else if (m->reserved)
            vmem_release(m->data, m->size);
        free(m);
        m = whole;
    }
}

/* ---- what a store tells of itself ------------------------------------------------------------ */

ccmem_status ccmem_store_check(const ccmem_store *s) {
    return fork_alien(s->core->generation) ? alien(s->core) : CCMEM_OK;
}

uint64_t ccmem_store_size(const ccmem_store *s) { return s->nbytes; }

ccmem_secret_level ccmem_store_level(const ccmem_store *s) { return s->core->level; }

ccmem_status ccmem_store_versions(ccmem_store *s, uint64_t first, uint64_t count, uint64_t *out) {
    if (fork_alien(s->core->generation))
        return alien(s->core);
    if (count > store_pages(s) || first > store_pages(s) - count)
        return CCMEM_ERR_RANGE;
    for (uint64_t i = 0; i < count; i++)
        out[i] = __atomic_load_n(&s->version[first + i], __ATOMIC_RELAXED) & ~LOCK;
    return CCMEM_OK;
}

ccmem_status ccmem_store_records(ccmem_store *s, uint64_t **versions, uint8_t **tags) {
    if (fork_alien(s->core->generation))
        return alien(s->core);
    *versions = s->version;
    *tags = (uint8_t *)s->tag;
    return CCMEM_OK;
}

ccmem_status ccmem_store_copies(ccmem_store *s, uint64_t **copies) {
    if (fork_alien(s->core->generation))
        return alien(s->core);
    *copies = s->core->read_only || !s->chunk ? NULL : store_sealed(s, 0);
    return CCMEM_OK;
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

ccmem_status ccmem_store_stats(ccmem_store *s, ccmem_stats *out) {
    if (fork_alien(s->core->generation))
        return alien(s->core);
    core_stats(s->core, out);
    return CCMEM_OK;
}

const char *ccmem_store_lost(const ccmem_store *s, uint64_t page) {
    const uint32_t shift = s->core->page_shift;
    return page < store_pages(s) ? lost_path(s->ct + (page << shift), (size_t)1 << shift) : NULL;
}

uint64_t ccmem_store_overhead(const ccmem_store *s) {
    const store_core *core = s->core;
    const uint64_t words = core->read_only ? 1 : 2, tag = s->tag ? sizeof *s->tag : 0;
    uint64_t own = (core->read_only ? sizeof(file_store) : sizeof *s) +
                   store_pages(s) * (words * sizeof *s->version + tag);
    if (core->shared)
        return own;
    own += sizeof *core + sizeof(ccmem_mapping);
    return core->read_only ? own + sizeof *core->late
                           : own + sizeof(store_chunk) + core->suite->key_size +
                                 tweak_cache_bytes(&core->page.cache);
}
