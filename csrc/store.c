/* SPDX-License-Identifier: Apache-2.0
 *
 * Where ciphertext and versions live, and who may touch them when.
 *
 * Each page has one 64-bit word: its version, and in the top bit a writer's lock. Writers take the
 * lock, seal the page under version + 1 and publish that version, which drops the lock. Readers
 * take nothing: they decrypt under the version they saw and look again afterwards, as with a
 * sequence lock, and repeat when a writer came between. So a read costs no locked instruction, and
 * readers never wait for each other; a version also never repeats, which makes the second look
 * conclusive. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "fork.h"
#include "key.h"
#include "page.h"
#include "secret.h"
#include "store.h"
#include "threads.h"
#include "vmem.h"

static const uint64_t LOCK = (uint64_t)1 << 63;
static const uint64_t VERSION_MAX = ((uint64_t)1 << 63) - 1;

enum {
    BATCH_BYTES = 256 << 10, /* pages locked, checked and encrypted at a time: an L2's worth */
    GRAIN_BYTES = 512 << 10, /* the least that is worth another thread */
    /* From this size on a bulk call writes around the caches. Below it the destination may still
     * be cached when it is used next, and non-temporal stores would cost more than they save. */
    STREAM_BYTES = 4 << 20,
    READ_RETRIES = 16, /* before a reader takes the writers' lock */
    SHARDS = 16
};

struct ccmem_mapping {
    uint64_t refs; /* atomic */
    uint64_t size;
    uint8_t *data;
};

/* Counters of one group of threads, alone on their cache lines. Plain loads and stores: two threads
 * of one group may lose a count, and no thread ever waits for another's cache line. */
typedef struct shard {
    _Alignas(128) ccmem_stats count;
} shard;

struct ccmem_store {
    page_context page;
    uint64_t *version; /* one word a page */
    uint8_t *ct;
    uint64_t generation;
    uint64_t nbytes;
    uint64_t npages;
    uint64_t version_limit;
    uint32_t page_shift;
    ccmem_secret_level level;
    xts_key *key;
    ccmem_mapping *mapping;
    shard shards[SHARDS];
};

static const struct {
    const char *name; /* the key derivation's label */
    size_t key_len;
} ciphers[CCMEM_CIPHER_COUNT] = {
    [CCMEM_AES_128_XTS] = {"aes-128-xts", 32},
    [CCMEM_AES_256_XTS] = {"aes-256-xts", 64},
};

static shard *my_shard(ccmem_store *s) {
    static unsigned threads; /* atomic */
    /* One word of static TLS, so that counting costs no call in a shared object. */
    static _Thread_local unsigned self __attribute__((tls_model("initial-exec")));
    if (__builtin_expect(!self, 0))
        self = 1 + __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED);
    return &s->shards[self % SHARDS];
}

static inline void add(uint64_t *counter, uint64_t n) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* ---- page words ------------------------------------------------------------------------------ */

static void back_off(unsigned *spins) {
    if (++*spins % 64)
        cpu_relax();
    else
        sched_yield();
}

/* The page's version, once no writer holds it. */
static inline uint64_t stable_version(const uint64_t *word) {
    uint64_t v = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    unsigned spins = 0;
    while (__builtin_expect((v & LOCK) != 0, 0)) {
        back_off(&spins);
        v = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    }
    return v;
}

static inline int unchanged(const uint64_t *word, uint64_t version) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __builtin_expect(__atomic_load_n(word, __ATOMIC_RELAXED) == version, 1);
}

/* Locks one page for writing and returns its version. */
static uint64_t lock_page(uint64_t *word) {
    for (unsigned spins = 0;; back_off(&spins)) {
        uint64_t v = __atomic_load_n(word, __ATOMIC_RELAXED);
        if (!(v & LOCK) && __atomic_compare_exchange_n(word, &v, v | LOCK, 0, __ATOMIC_ACQUIRE,
                                                       __ATOMIC_RELAXED)) {
            /* The page must not change before the lock shows. */
            __atomic_thread_fence(__ATOMIC_RELEASE);
            return v;
        }
    }
}

static inline void publish(uint64_t *word, uint64_t version) {
    __atomic_store_n(word, version, __ATOMIC_RELEASE);
}

/* ---- part of a page -------------------------------------------------------------------------- */

static void open_part(ccmem_store *s, shard *sh, uint64_t page, uint64_t version, uint32_t offset,
                      uint8_t *out, uint32_t n) {
    if (version == 0) {
        memset(out, 0, n);
        return;
    }
    int hit = page_open_part(&s->page, out, s->ct + (page << s->page_shift), page, version, offset,
                             n);
    add(hit ? &sh->count.tweak_hits : &sh->count.tweak_misses, 1);
    add(&sh->count.pages_opened, 1);
}

static void read_part(ccmem_store *s, shard *sh, uint64_t page, uint32_t offset, uint8_t *out,
                      uint32_t n) {
    uint64_t *word = &s->version[page];
    for (int tries = 0; tries < READ_RETRIES; tries++) {
        uint64_t v = stable_version(word);
        open_part(s, sh, page, v, offset, out, n);
        if (unchanged(word, v))
            return;
        add(&sh->count.retries, 1);
    }
    uint64_t v = lock_page(word);
    open_part(s, sh, page, v, offset, out, n);
    publish(word, v);
}

static ccmem_status write_parts(ccmem_store *s, shard *sh, uint64_t page, const uint64_t *offsets,
                                size_t count, const uint8_t *data, uint32_t n) {
    uint64_t *word = &s->version[page];
    uint64_t v = lock_page(word);
    if (v >= s->version_limit) {
        publish(word, v);
        return CCMEM_ERR_VERSION;
    }
    page_modify(&s->page, s->ct + (page << s->page_shift), data, page, v, v + 1, offsets, count, n);
    publish(word, v + 1);
    add(&sh->count.pages_sealed, 1);
    return CCMEM_OK;
}

static ccmem_status write_part(ccmem_store *s, shard *sh, uint64_t page, uint64_t offset,
                               const uint8_t *data, uint32_t n) {
    return write_parts(s, sh, page, &offset, 1, data, n);
}

/* ---- whole pages ----------------------------------------------------------------------------- */

typedef struct bulk {
    ccmem_store *store;
    uint64_t first;
    uint8_t *out;
    const uint8_t *data;
    unsigned flags;
    int status; /* atomic */
} bulk;

static uint64_t batch_pages(const ccmem_store *s) {
    uint64_t n = BATCH_BYTES >> s->page_shift;
    return n < PAGE_BATCH ? n : PAGE_BATCH;
}

static void read_batch(ccmem_store *s, shard *sh, uint64_t first, uint8_t *out, uint64_t n,
                       unsigned flags) {
    uint64_t v[PAGE_BATCH];
    for (uint64_t i = 0; i < n; i++)
        v[i] = stable_version(&s->version[first + i]);
    for (uint64_t i = 0, run; i < n; i += run) {
        for (run = 1; i + run < n && !v[i + run] == !v[i];)
            run++;
        uint8_t *to = out + (i << s->page_shift);
        if (v[i]) {
            page_open(&s->page, to, s->ct + ((first + i) << s->page_shift), first + i, v + i, run,
                      flags);
            add(&sh->count.pages_opened, run);
        } else {
            memset(to, 0, run << s->page_shift);
        }
    }
    for (uint64_t i = 0; i < n; i++) {
        if (!unchanged(&s->version[first + i], v[i])) {
            add(&sh->count.retries, 1);
            read_part(s, sh, first + i, 0, out + (i << s->page_shift), s->page.size);
        }
    }
}

static void read_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s);
    uint64_t most = batch_pages(s);
    for (uint64_t i = begin, n; i < end; i += n) {
        n = end - i < most ? end - i : most;
        read_batch(s, sh, b->first + i, b->out + (i << s->page_shift), n, b->flags);
    }
}

static ccmem_status write_batch(ccmem_store *s, shard *sh, uint64_t first, const uint8_t *data,
                                uint64_t n, unsigned flags) {
    uint64_t v[PAGE_BATCH] = {0};
    int room = 1;
    /* Every writer locks pages in ascending order, so no two wait for each other. */
    for (uint64_t i = 0; i < n; i++) {
        v[i] = lock_page(&s->version[first + i]) + 1;
        room &= v[i] <= s->version_limit;
    }
    if (room)
        page_seal(&s->page, s->ct + (first << s->page_shift), data, first, v, n, flags);
    for (uint64_t i = 0; i < n; i++)
        publish(&s->version[first + i], room ? v[i] : v[i] - 1);
    if (!room)
        return CCMEM_ERR_VERSION;
    add(&sh->count.pages_sealed, n);
    return CCMEM_OK;
}

static void write_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s);
    uint64_t most = batch_pages(s);
    for (uint64_t i = begin, n; i < end; i += n) {
        n = end - i < most ? end - i : most;
        ccmem_status status =
            write_batch(s, sh, b->first + i, b->data + (i << s->page_shift), n, b->flags);
        if (status != CCMEM_OK) {
            __atomic_store_n(&b->status, status, __ATOMIC_RELAXED);
            return;
        }
    }
}

/* ---- reading and writing --------------------------------------------------------------------- */

/* A byte range as whole pages and the parts before and after them. */
typedef struct range {
    uint64_t first, pages; /* whole pages */
    uint32_t head, tail;   /* bytes before and after */
    uint32_t head_offset;
} range;

static range split(const ccmem_store *s, uint64_t offset, uint64_t n) {
    range r = {0};
    uint32_t size = s->page.size;
    r.first = offset >> s->page_shift;
    r.head_offset = (uint32_t)(offset & (size - 1));
    if (r.head_offset || n < size) {
        r.head = (uint32_t)(n < size - r.head_offset ? n : size - r.head_offset);
        r.first++;
        n -= r.head;
    }
    r.pages = n >> s->page_shift;
    r.tail = (uint32_t)(n & (size - 1));
    return r;
}

static void run_bulk(bulk *b, uint64_t pages, parallel_body body) {
    const ccmem_store *s = b->store;
    b->flags = (pages << s->page_shift) >= STREAM_BYTES ? XTS_STREAM : 0;
    parallel_for(pages, GRAIN_BYTES >> s->page_shift, body, b);
}

static inline ccmem_status check_call(const ccmem_store *s, uint64_t offset, uint64_t n) {
    if (__builtin_expect(fork_alien(s->generation), 0))
        return CCMEM_ERR_FORK;
    if (__builtin_expect(n > s->nbytes || offset > s->nbytes - n, 0))
        return CCMEM_ERR_RANGE;
    return CCMEM_OK;
}

ccmem_status ccmem_store_read(ccmem_store *s, uint64_t offset, void *out, uint64_t n) {
    ccmem_status status = check_call(s, offset, n);
    if (status != CCMEM_OK)
        return status;
    shard *sh = my_shard(s);
    uint8_t *to = out;
    add(&sh->count.reads, 1);
    add(&sh->count.bytes_read, n);
    uint32_t in_page = (uint32_t)(offset & (s->page.size - 1));
    if (n <= s->page.size - in_page) {
        if (n)
            read_part(s, sh, offset >> s->page_shift, in_page, to, (uint32_t)n);
        return CCMEM_OK;
    }
    range r = split(s, offset, n);
    if (r.head)
        read_part(s, sh, r.first - 1, r.head_offset, to, r.head);
    if (r.pages) {
        bulk b = {.store = s, .first = r.first, .out = to + r.head};
        run_bulk(&b, r.pages, read_pages);
    }
    if (r.tail)
        read_part(s, sh, r.first + r.pages, 0, to + (n - r.tail), r.tail);
    return CCMEM_OK;
}

void store_prefetch(const ccmem_store *s, uint64_t offset, uint64_t n) {
    enum { LINE = 64, LINES = 8 }; /* the rest is left to the hardware, which sees a stream by then */
    uint64_t page = offset >> s->page_shift;
    __builtin_prefetch(&s->version[page]);
    if (s->page.cache.entries)
        __builtin_prefetch(&s->page.cache.entries[page & s->page.cache.mask]);
    for (uint64_t i = 0; i < n && i < LINES * LINE; i += LINE)
        __builtin_prefetch(s->ct + offset + i);
}

/* Looks for room in all pages before the first is touched, so that a refused write changes nothing. */
static ccmem_status check_versions(const ccmem_store *s, uint64_t offset, uint64_t n) {
    uint64_t last = (offset + n - 1) >> s->page_shift;
    for (uint64_t p = offset >> s->page_shift; p <= last; p++)
        if ((__atomic_load_n(&s->version[p], __ATOMIC_RELAXED) & ~LOCK) >= s->version_limit)
            return CCMEM_ERR_VERSION;
    return CCMEM_OK;
}

ccmem_status ccmem_store_write(ccmem_store *s, uint64_t offset, const void *data, uint64_t n) {
    ccmem_status status = check_call(s, offset, n);
    const uint8_t *from = data;
    if (status == CCMEM_OK && n)
        status = check_versions(s, offset, n);
    if (status != CCMEM_OK)
        return status;
    shard *sh = my_shard(s);
    range r = split(s, offset, n);
    if (r.head)
        status = write_part(s, sh, r.first - 1, r.head_offset, from, r.head);
    if (status == CCMEM_OK && r.pages) {
        bulk b = {.store = s, .first = r.first, .data = from + r.head};
        run_bulk(&b, r.pages, write_pages);
        status = (ccmem_status)b.status;
    }
    if (status == CCMEM_OK && r.tail)
        status = write_part(s, sh, r.first + r.pages, 0, from + (n - r.tail), r.tail);
    if (status != CCMEM_OK)
        return status;
    add(&sh->count.writes, 1);
    add(&sh->count.bytes_written, n);
    return CCMEM_OK;
}

uint32_t store_page_size(const ccmem_store *s) { return s->page.size; }

ccmem_status store_write_in_page(ccmem_store *s, const uint64_t *offsets, size_t count,
                                 const void *data, uint32_t n) {
    shard *sh = my_shard(s);
    ccmem_status status = write_parts(s, sh, offsets[0] >> s->page_shift, offsets, count, data, n);
    if (status == CCMEM_OK) {
        add(&sh->count.writes, 1);
        add(&sh->count.bytes_written, (uint64_t)count * n);
    }
    return status;
}

/* ---- life ------------------------------------------------------------------------------------ */

static ccmem_status new_mapping(uint64_t size, ccmem_mapping **out) {
    ccmem_mapping *m = calloc(1, sizeof *m);
    void *p = NULL;
    if (!m)
        return CCMEM_ERR_NOMEM;
    if (size) {
        ccmem_status status = vmem_map_pages(size, &p);
        if (status != CCMEM_OK) {
            free(m);
            return status;
        }
    }
    m->refs = 1;
    m->size = size;
    m->data = p;
    *out = m;
    return CCMEM_OK;
}

static ccmem_status new_key(ccmem_store *s, const ccmem_key *root, ccmem_cipher cipher) {
    uint8_t id[CCMEM_STORE_ID_SIZE];
    void *slot, *subkey;
    size_t len = ciphers[cipher].key_len;
    ccmem_status status = secret_alloc(sizeof(xts_key), key_require(root), &slot, &s->level);
    if (status != CCMEM_OK)
        return status;
    s->key = slot;
    s->page.key = slot;
    status = random_bytes(id, sizeof id);
    if (status != CCMEM_OK)
        return status;
    status = secret_alloc(len, key_require(root), &subkey, NULL);
    if (status != CCMEM_OK)
        return status;
    status = key_derive(root, ciphers[cipher].name, id, s->page.size, subkey, len);
    if (status == CCMEM_OK)
        status = xts_expand(s->key, subkey, len);
    secret_free(subkey);
    return status;
}

ccmem_status ccmem_store_new(const ccmem_key *key, ccmem_cipher cipher, uint64_t nbytes,
                             uint32_t page_size, uint64_t version_limit,
                             uint32_t tweak_cache_entries, ccmem_store **out) {
    ccmem_store *s;
    void *versions = NULL;
    if (!key || !out || (unsigned)cipher >= CCMEM_CIPHER_COUNT || version_limit > VERSION_MAX ||
        page_size < CCMEM_PAGE_SIZE_MIN || page_size > CCMEM_PAGE_SIZE_MAX ||
        (page_size & (page_size - 1)))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status != CCMEM_OK)
        return status;
    if (nbytes > (uint64_t)INT64_MAX - page_size)
        return CCMEM_ERR_NOMEM;
    if (posix_memalign((void **)&s, _Alignof(ccmem_store), sizeof *s))
        return CCMEM_ERR_NOMEM;
    memset(s, 0, sizeof *s);
    s->generation = fork_generation();
    s->page_shift = (uint32_t)__builtin_ctz(page_size);
    s->page.size = page_size;
    s->page.ops = xts_tier(ccmem_tier_active());
    s->nbytes = nbytes;
    s->npages = (nbytes + page_size - 1) >> s->page_shift;
    s->version_limit = version_limit ? version_limit : VERSION_MAX;
    status = new_key(s, key, cipher);
    if (status == CCMEM_OK)
        status = new_mapping(s->npages << s->page_shift, &s->mapping);
    if (status == CCMEM_OK && s->npages)
        status = vmem_map_private(s->npages * sizeof *s->version, &versions);
    if (status == CCMEM_OK)
        status = tweak_cache_init(&s->page.cache, tweak_cache_entries, s->npages);
    s->version = versions;
    if (s->mapping)
        s->ct = s->mapping->data;
    if (status != CCMEM_OK) {
        ccmem_store_free(s);
        return status;
    }
    *out = s;
    return CCMEM_OK;
}

void ccmem_store_free(ccmem_store *s) {
    if (!s)
        return;
    int alien = fork_alien(s->generation);
    tweak_cache_destroy(&s->page.cache, alien);
    if (!alien) {
        secret_free(s->key);
        vmem_unmap(s->version, s->npages * sizeof *s->version);
    }
    ccmem_mapping_release(s->mapping);
    free(s);
}

ccmem_mapping *ccmem_store_mapping(ccmem_store *s) {
    __atomic_fetch_add(&s->mapping->refs, 1, __ATOMIC_RELAXED);
    return s->mapping;
}

const uint8_t *ccmem_mapping_data(const ccmem_mapping *m) { return m->data; }

uint64_t ccmem_mapping_size(const ccmem_mapping *m) { return m->size; }

void ccmem_mapping_release(ccmem_mapping *m) {
    if (!m || __atomic_fetch_sub(&m->refs, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    vmem_unmap(m->data, m->size);
    free(m);
}

/* ---- what a store tells of itself ------------------------------------------------------------ */

ccmem_status ccmem_store_check(const ccmem_store *s) {
    return fork_alien(s->generation) ? CCMEM_ERR_FORK : CCMEM_OK;
}

uint64_t ccmem_store_size(const ccmem_store *s) { return s->nbytes; }

ccmem_secret_level ccmem_store_level(const ccmem_store *s) { return s->level; }

ccmem_status ccmem_store_versions(ccmem_store *s, uint64_t first, uint64_t count, uint64_t *out) {
    if (fork_alien(s->generation))
        return CCMEM_ERR_FORK;
    if (count > s->npages || first > s->npages - count)
        return CCMEM_ERR_RANGE;
    for (uint64_t i = 0; i < count; i++)
        out[i] = __atomic_load_n(&s->version[first + i], __ATOMIC_RELAXED) & ~LOCK;
    return CCMEM_OK;
}

ccmem_status ccmem_store_stats(ccmem_store *s, ccmem_stats *out) {
    enum { WORDS = sizeof(ccmem_stats) / sizeof(uint64_t) };
    uint64_t *sum = (uint64_t *)out;
    if (fork_alien(s->generation))
        return CCMEM_ERR_FORK;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < SHARDS; i++) {
        const uint64_t *word = (const uint64_t *)&s->shards[i].count;
        for (int w = 0; w < WORDS; w++)
            sum[w] += __atomic_load_n(&word[w], __ATOMIC_RELAXED);
    }
    return CCMEM_OK;
}

uint64_t ccmem_store_overhead(const ccmem_store *s) {
    return sizeof *s + sizeof(ccmem_mapping) + sizeof(xts_key) +
           s->npages * sizeof *s->version + tweak_cache_bytes(&s->page.cache);
}
