/* SPDX-License-Identifier: Apache-2.0
 * What a store is made of; for the files of store/ alone.
 *
 * A core holds the keys and everything else that is heavy; stores that are encrypted together, or
 * lie in one file, share one. A chunk is memory for pages and what is known of each. A store is a
 * run of pages in a chunk: light, and of a fixed size, so that the caller may have it anywhere. A
 * read-only store has no chunk, but its subkey and what is known of its pages in the memory behind
 * it. */
#ifndef CCMEM_STORE_CORE_H
#define CCMEM_STORE_CORE_H

#include <pthread.h>

#include "pages/page_key.h"
#include "pages/subkeys.h"
#include "store/store.h"

struct ccmem_mapping {
    uint64_t refs; /* atomic */
    uint64_t size;
    uint8_t *data;
    ccmem_mapping *whole; /* of which this is a part, and whose memory it is; NULL: its own */
    int reserved; /* the whole is addresses alone, and the memory this part's: vmem_reserve() */
    int lent;     /* it is memory of others, which stays theirs */
};

/* Counters of one group of threads, alone on their cache lines. Plain loads and stores: two threads
 * of one group may lose a count, and no thread ever waits for another's cache line. */
typedef struct shard {
    _Alignas(128) ccmem_stats count;
} shard;

enum {
    SHARDS = 16,
    /* A writer that may hold locks in a group of PAGE_BATCH pages counts in the group's slot: the
     * low half is how many there are, the high half grows with each. */
    SLOTS = 256
};

typedef struct store_chunk {
    struct store_chunk *next;
    ccmem_mapping *pages;
    void *records; /* tags, versions and their copies: one mapping */
    uint64_t record_bytes;
    uint64_t *version; /* CCMEM_FRESH_LOCKED: in locked memory of their own; _ONCE: NULL */
    uint64_t *sealed;  /* copies of these */
    page_tag *tag;     /* NULL for a cipher without */
    uint64_t first;    /* the number of its first page */
    uint64_t npages;
    /* Of an arena's, under its lock: */
    uint64_t fresh;   /* pages from here on were never in use */
    uint64_t left;    /* pages below that had a store and may have another */
    uint64_t *in_use; /* one bit a page */
} store_chunk;

typedef struct store_core {
    page_context page;
    page_context other; /* as the first but for the key, once there was a second one: rekey.c */
    uint64_t turn;      /* atomic, see core_page() */
    uint64_t generation;
    uint64_t version_limit; /* atomic */
    uint64_t versions;      /* that a page may have under one key */
    uint64_t frontier;      /* atomic: numbers of pages below this are under the new key */
    uint64_t sealed_before; /* atomic: pages, under earlier keys */
    int moving;             /* atomic: a thread begins to move pages, or moves some */
    int paused;             /* atomic: writers wait before they change a page */
    uint32_t page_shift;
    int read_only;    /* stores over a file */
    int writes_ended; /* atomic */
    ccmem_freshness freshness;
    ccmem_secret_level level;
    ccmem_secret_level require; /* of its key */
    void *key;                  /* expanded, in secret memory; NULL: */
    void *other_key;            /* that of `other`; NULL: there was only one */
    subkeys *late;              /* one for each store, derived when it is used */
    const page_suite *suite;
    uint64_t refs; /* atomic: its stores, and the arena itself */
    store_chunk *chunks;
    int shared;                    /* by many stores: an arena's, or a file's */
    pthread_mutex_t lock;          /* of an arena: for its chunks and what follows */
    uint64_t next_page;            /* no chunk has numbers from here on */
    uint64_t stores, bytes, pages; /* of an arena, in use, each atomic */
    uint64_t slots[SLOTS];         /* atomic, see store/lock.c */
    shard shards[SHARDS];
} store_core;

struct ccmem_store {
    store_core *core; /* NULL: there is none */
    union {
        store_chunk *chunk;
        ccmem_mapping *pages; /* of a read-only store: where they lie; a reference of its own */
    };
    /* Of its own first page: */
    uint64_t *version; /* one word a page; NULL: all are sealed once, as version SEALED_ONCE */
    page_tag *tag;     /* NULL for a cipher without */
    uint8_t *ct;
    uint64_t first; /* the page's number in the core: what its tweak or nonce is made of */
    uint64_t nbytes;
    uint64_t filled; /* bytes from the beginning on, atomic: of CCMEM_FRESH_ONCE */
};

/* The version of a page that is sealed once. */
enum { SEALED_ONCE = 1 };

_Static_assert(sizeof(struct ccmem_store) <= CCMEM_STORE_SIZE, "fits where the caller puts it");

/* A read-only store and what follows it: the versions and then the tags of its pages, as they lie
 * in the file, unless there are more than CCMEM_FILE_RECORDS_MAX pages; then these have a mapping
 * of their own. */
typedef struct file_store {
    ccmem_store store; /* first, so that its address is that of the whole */
    subkey key;
    uint64_t records[];
} file_store;

_Static_assert(sizeof(file_store) <= CCMEM_FILE_STORE_SIZE, "fits where the caller puts it");
_Static_assert(sizeof(page_tag) + sizeof(uint64_t) == CCMEM_FILE_RECORD_SIZE, "a page's records");

/* The core of a store that was removed: of no process. */
extern const store_core store_gone;

static inline uint64_t store_pages(const ccmem_store *s) {
    return (s->nbytes + s->core->page.size - 1) >> s->core->page_shift;
}

/* Returns with what a page of this version is opened. In `turn` the lowest bit says which of the
 * two contexts has the key that pages are sealed under; the rest is the version that the first page
 * of that key had, as long as there may be pages of the other key, whose versions are all lower,
 * and then 0. Call it after the version was loaded with acquire: a version from there on was
 * published after the turn. */
static inline const page_context *core_page(const store_core *c, uint64_t version) {
    const uint64_t turn = __atomic_load_n(&c->turn, __ATOMIC_ACQUIRE);
    return ((turn & 1) ^ (uint64_t)(version < turn >> 1)) ? &c->other : &c->page;
}

/* Returns 1 for a version of a page that is still under the key before. */
static inline int core_before(const store_core *c, uint64_t version) {
    return version < __atomic_load_n(&c->turn, __ATOMIC_ACQUIRE) >> 1;
}

/* Returns with what pages are sealed, for a writer that is in its slot: it does not change before
 * the writer has left. */
static inline const page_context *core_sealing(const store_core *c) {
    return __atomic_load_n(&c->turn, __ATOMIC_ACQUIRE) & 1 ? &c->other : &c->page;
}

/* Returns the version after the last one that was used, likewise: none that is below the first of
 * the key. */
static inline uint64_t core_next_version(const store_core *c, uint64_t used) {
    const uint64_t first = __atomic_load_n(&c->turn, __ATOMIC_ACQUIRE) >> 1;
    return used + 1 > first ? used + 1 : first;
}

/* The highest version that a page may have under the key that pages are sealed under. */
static inline uint64_t core_version_limit(const store_core *c) {
    return __atomic_load_n(&c->version_limit, __ATOMIC_RELAXED);
}

/* Returns 1 if an arena's chunk has a store with this page. */
static inline int chunk_uses(const store_chunk *c, uint64_t page) {
    return (int)(c->in_use[page / 64] >> page % 64 & 1);
}

/* Where the last version is that a page was sealed under, whatever became of its word; a store
 * whose pages are sealed once has none. */
static inline uint64_t *store_sealed(const ccmem_store *s, uint64_t page) {
    return s->chunk->sealed + (s->version - s->chunk->version) + page;
}

/* Returns why a store is not to be written: CCMEM_ERR_READONLY or _FROZEN, else CCMEM_OK. */
static inline ccmem_status store_refuses(const ccmem_store *s) {
    const store_core *c = s->core;
    if (__builtin_expect(!s->version, 0))
        return c->read_only ? CCMEM_ERR_READONLY : s->nbytes ? CCMEM_ERR_FROZEN : CCMEM_OK;
    return __builtin_expect(c->read_only, 0) ? CCMEM_ERR_READONLY : CCMEM_OK;
}

/* CCMEM_ERR_FROZEN when ccmem_store_end_writes() was called, for a writer that has locked its
 * pages: before, the answer would mean nothing. */
static inline ccmem_status writes_ended(const store_core *c) {
    return __atomic_load_n(&c->writes_ended, __ATOMIC_SEQ_CST) ? CCMEM_ERR_FROZEN : CCMEM_OK;
}

/* Bytes of what is known of a page: its tag, version and copy. */
static inline uint64_t core_record_bytes(const store_core *c) {
    const uint64_t words = c->freshness == CCMEM_FRESH_ONCE ? 0 : 2;
    return words * sizeof(uint64_t) + c->suite->is.tag_size;
}

/* A core with its keys and one reference, without a chunk. `id` NULL: of read-only stores, which
 * bring their ids, and whose subkeys are derived when they are used. */
ccmem_status core_new(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                      uint32_t page_size, ccmem_freshness freshness, store_core **out);

/* Drops a reference; the last one wipes the keys and gives the chunks back. */
void core_release(store_core *core);

/* Memory for npages pages that are yet to be written, and for what is known of them. Not yet among
 * the core's chunks. */
ccmem_status chunk_new(const store_core *core, uint64_t npages, store_chunk **out);

void chunk_free(const store_core *core, store_chunk *chunk);

/* ccmem_store_fill() for a store that was checked: all arguments but that `offset` is the end of
 * what is filled. CCMEM_ERR_FROZEN. */
ccmem_status store_fill(ccmem_store *store, uint64_t offset, const uint8_t *data, uint64_t n);

/* The last version that a page may have been sealed under, which no thread uses any more; the
 * core's version_limit: it may be sealed no more. */
uint64_t store_used_version(const ccmem_store *store, uint64_t page);

/* Seals zeros into pages [0, n) of a store, whatever they are now. */
ccmem_status store_clear(ccmem_store *store, uint64_t n);

/* n bytes from platform/vmem.h or a mapping of their own at `data`, or none: on success the
 * mapping's. With `whole` they are a part of that, to which the part takes a reference.
 * CCMEM_ERR_NOMEM. */
ccmem_status mapping_new(void *data, uint64_t n, ccmem_mapping *whole, ccmem_mapping **out);

/* Makes a read-only store of nbytes <= STORE_BYTES_MAX bytes at `s`, CCMEM_FILE_STORE_SIZE zero
 * bytes and what its records take, over pages that lie at `ct` in the mapping `pages` (NULL: none)
 * and may be changed by others at any time. Versions and tags are copied. On success the store has
 * references to the core and the mapping; on failure nothing has changed. CCMEM_ERR_ARGUMENT: a
 * version that no page can have; CCMEM_ERR_NOMEM, _SECRETMEM. */
ccmem_status store_over(store_core *core, const uint8_t id[16], uint64_t nbytes,
                        ccmem_mapping *pages, uint8_t *ct, const void *versions, const void *tags,
                        file_store *s);

/* Ends a read-only store: wipes its subkey and gives up what it has. What lies at `s` is then a
 * store that is closed. */
void store_over_end(file_store *s);

/* Returns why a core is not to be used in this process: CCMEM_ERR_CLOSED or _FORK. */
__attribute__((cold)) ccmem_status core_alien(const store_core *core);

/* What the stores of an arena share. */
store_core *arena_core(const ccmem_arena *arena);

/* Counts a damaged page, notes it for ccmem_last_failure() and returns CCMEM_ERR_INTEGRITY; or
 * CCMEM_ERR_WITHHELD, when this thread has called store_withheld() since it did last. */
__attribute__((cold)) ccmem_status store_damaged(shard *sh, uint64_t page, uint64_t version);

/* Notes that a page counts as damaged only because there is no key to open it. */
__attribute__((cold)) void store_withheld(void);

extern unsigned core_threads; /* atomic */
/* One word of static TLS, so that counting costs no call in a shared object. */
extern _Thread_local unsigned core_thread __attribute__((tls_model("initial-exec")));

/* Returns the counters of the calling thread's group. */
static inline shard *my_shard(store_core *core) {
    if (__builtin_expect(!core_thread, 0))
        core_thread = 1 + __atomic_fetch_add(&core_threads, 1, __ATOMIC_RELAXED);
    return &core->shards[core_thread % SHARDS];
}

/* Adds to a counter of a shard. */
static inline void add(uint64_t *counter, uint64_t n) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* Adds up one core's counters. */
void core_stats(const store_core *core, ccmem_stats *out);

#endif
