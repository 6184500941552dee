/* SPDX-License-Identifier: Apache-2.0
 *
 * ccmem: memory pages held as ciphertext. This is the only public header of the native core, and
 * cffi reads it as the declaration of the Python binding: plain C99 declarations, preprocessor
 * lines only for inclusion.
 *
 * Conventions. Every function that can fail returns a ccmem_status. Outputs are written only when
 * CCMEM_OK is returned, unless a contract says otherwise. Sizes and offsets are in bytes. No
 * function calls back into the caller, and none needs a lock held; functions that take the same
 * object may run in several threads at once, except the *_free functions, which must be the last
 * use of their object.
 */
#ifndef CCMEM_H
#define CCMEM_H

#include <stddef.h>
#include <stdint.h>

typedef enum ccmem_status {
    CCMEM_OK = 0,
    CCMEM_ERR_ARGUMENT,     /* an argument outside its documented domain */
    CCMEM_ERR_RANGE,        /* offset + length reaches outside the store */
    CCMEM_ERR_EQUAL_HALVES, /* XTS key with K1 == K2 (IEEE 1619-2018, 5.1; FIPS 140 IG C.I) */
    CCMEM_ERR_NOMEM,        /* the system refused memory */
    CCMEM_ERR_MEMLOCK,      /* RLIMIT_MEMLOCK leaves no room for another locked page */
    CCMEM_ERR_SECRETMEM,    /* the required secret-memory level cannot be had on this system */
    CCMEM_ERR_FORK,         /* the object belongs to the process this one was forked from */
    CCMEM_ERR_VERSION,      /* a page has no unused version left under this key */
    CCMEM_ERR_TIER,         /* unknown tier name, or one that this processor cannot run */
    CCMEM_ERR_SELFTEST,     /* a known-answer test failed */
    CCMEM_ERR_ENTROPY,      /* the system's random generator failed */
    CCMEM_ERR_IO,           /* reading or mapping a file failed; errno says why */
    CCMEM_ERR_KEYFILE,      /* a key file that holds neither 32 bytes nor 64 hexadecimal digits */
    CCMEM_ERR_INTEGRITY,    /* a page, a message or a wrapped key does not match its tag */
    CCMEM_ERR_READONLY,     /* the store is over a file that others may have mapped as well */
    CCMEM_ERR_BUDGET,       /* the plaintext budget leaves no room for this */
    CCMEM_ERR_FAULT,        /* the fault mechanism cannot be had on this system; errno says why */
    CCMEM_ERR_MAPPED,       /* another mapping covers some of these bytes, and one may be written */
    CCMEM_ERR_PINNED,       /* too much of a mapping's window would be pinned */
    CCMEM_ERR_THREAD,       /* the system refused a thread */
    CCMEM_ERR_CLOSED,       /* the store was removed from its arena */
    CCMEM_ERR_FROZEN,       /* the store's pages are sealed once, and were, or writes were ended */
    CCMEM_ERR_REKEY,        /* the pages are being moved to another key, or by another thread */
    CCMEM_ERR_WITHHELD      /* the key of the file was withheld, see ccmem_file_withhold() */
} ccmem_status;

/* ISA levels of the kernels, worst first. */
typedef enum ccmem_tier {
    CCMEM_TIER_PORTABLE = 0, /* constant-time C, any architecture */
    CCMEM_TIER_AESNI,        /* AES-NI + PCLMULQDQ + SSE4.2, 128-bit */
    CCMEM_TIER_VAES256,      /* VAES + VPCLMULQDQ + AVX2, 256-bit (Zen 3, Alder Lake) */
    CCMEM_TIER_VAES512,      /* VAES + VPCLMULQDQ + AVX-512 F/BW/VL (Ice Lake-SP, Zen 4) */
    CCMEM_TIER_COUNT
} ccmem_tier;

typedef enum ccmem_cipher {
    CCMEM_AES_128_XTS = 0,
    CCMEM_AES_256_XTS,
    CCMEM_AEGIS_128X2, /* authenticated: every changed page is noticed; so are the next two */
    CCMEM_AES_256_GCM,
    CCMEM_AEGIS_256X2,
    CCMEM_SM4_XTS, /* with the tweaks of GB/T 17964-2021, and without tags */
    CCMEM_SM4_GCM, /* RFC 8998; with tags */
    CCMEM_CIPHER_COUNT
} ccmem_cipher;

/* How well secret memory hides what it holds, weakest first. */
typedef enum ccmem_secret_level {
    CCMEM_SECRET_NONE = 0, /* not even locked: never handed out, only reported by a failed probe */
    CCMEM_SECRET_MLOCK,    /* mlock + MADV_DONTDUMP + MADV_DONTFORK */
    CCMEM_SECRET_MEMFD,    /* memfd_secret: absent from the kernel's direct map and /proc/PID/mem */
    CCMEM_SECRET_MLOCK_ONLY /* no level: asks for CCMEM_SECRET_MLOCK, even where there is better */
} ccmem_secret_level;

enum {
    CCMEM_ROOT_KEY_SIZE = 32,
    CCMEM_STORE_ID_SIZE = 16,
    CCMEM_WRAPPED_KEY_SIZE = 40,
    CCMEM_KEY_ID_SIZE = 16,
    CCMEM_CONTEXT_DIGEST_SIZE = 32,
    CCMEM_MAC_SIZE = 16,
    CCMEM_STORE_SIZE = 64,         /* bytes of a store that the caller has the memory for */
    CCMEM_FILE_STORE_SIZE = 96,    /* the same of a store in a file, */
    CCMEM_FILE_RECORD_SIZE = 24,   /* and for each of its pages, */
    CCMEM_FILE_RECORDS_MAX = 1024, /* if it has no more of them than this */
    CCMEM_PAGE_SIZE_MIN = 4096,
    CCMEM_PAGE_SIZE_MAX = 65536,
    CCMEM_MAX_THREADS = 256
};

/* Where a store has the versions of its pages, and so what becomes of a page that is put back as it
 * was, together with its tag and whatever else lies beside it in memory. */
typedef enum ccmem_freshness {
    CCMEM_FRESH_NOT = 0, /* in ordinary memory: it opens as it was */
    CCMEM_FRESH_LOCKED,  /* in locked memory, 8 bytes a page, which count against RLIMIT_MEMLOCK: it
                          * matches no tag, unless that memory was written as well */
    CCMEM_FRESH_ONCE     /* nowhere: each page is sealed once, as version 1, by ccmem_store_fill(),
                          * so that there is no earlier state of it under its key */
} ccmem_freshness;

typedef struct ccmem_key ccmem_key;         /* a root key in secret memory */
typedef struct ccmem_store ccmem_store;     /* ciphertext pages with their versions */
typedef struct ccmem_mapping ccmem_mapping; /* a counted reference to a store's ciphertext */
typedef struct ccmem_arena ccmem_arena;     /* what stores that are encrypted together share */
typedef struct ccmem_file ccmem_file;       /* what read-only stores over one file share */
typedef struct ccmem_sealer ccmem_sealer;   /* seals the pages of a file */
typedef struct ccmem_region ccmem_region;   /* an address range that fills on fault */
typedef struct ccmem_samples ccmem_samples; /* 16-byte samples, kept under a random mask */

/* ---- start-up, processor, tiers -------------------------------------------------------------- */

/* Detects the processor and chooses the active tier: that of the name, or when NULL or "" the best
 * one that passes its known-answer tests; the others are tested before their first use. Idempotent:
 * the first successful call decides. Must succeed before any other function is called. On failure
 * nothing is chosen. CCMEM_ERR_TIER, CCMEM_ERR_SELFTEST, CCMEM_ERR_NOMEM. */
ccmem_status ccmem_init(const char *name);

/* The tier chosen by ccmem_init. */
ccmem_tier ccmem_tier_active(void);

/* CCMEM_OK when the tier can be used: the first question runs its known-answer tests, a millisecond
 * or so, and the answer is remembered. Functions that take a tier ask by themselves, and return
 * what it returns: CCMEM_ERR_TIER when this processor has not what it needs, CCMEM_ERR_SELFTEST
 * when an answer was wrong, CCMEM_ERR_NOMEM when there was no memory for the tests. */
ccmem_status ccmem_tier_check(ccmem_tier tier);

/* 1 when ccmem_tier_check() is CCMEM_OK, else 0. */
int ccmem_tier_usable(ccmem_tier tier);

/* The tier's name as PYCCMEM_TIER spells it; NULL outside the enumeration. */
const char *ccmem_tier_name(ccmem_tier tier);

/* Runs the known-answer tests of a tier, whether they were run before or not. Errors as of
 * ccmem_tier_check(). */
ccmem_status ccmem_selftest(ccmem_tier tier);

/* The name of processor feature number `index` ("aes", "vaes", ...), NULL past the last; when
 * `present` is not NULL it receives 1 or 0. */
const char *ccmem_cpu_feature(unsigned index, int *present);

/* What x86's CPUID says of a leaf and subleaf, as eax, ebx, ecx, edx: zeros for a leaf that the
 * processor or the hypervisor does not have, and on other architectures. */
void ccmem_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);

/* One English sentence for a status, without a final full stop; never NULL. */
const char *ccmem_status_text(ccmem_status status);

/* ---- threads --------------------------------------------------------------------------------- */

/* Sets how many threads (1..CCMEM_MAX_THREADS, the caller's included) one bulk read or write may
 * use, for the whole process. CCMEM_ERR_ARGUMENT outside that range. */
ccmem_status ccmem_set_threads(unsigned threads);

/* The number set, or the size of the process's CPU affinity mask when none was. */
unsigned ccmem_threads(void);

/* Has bulk calls run in the threads of an OpenMP library from now on: `gomp_parallel` is its
 * GOMP_parallel() (the interface of GCC's libgomp, which LLVM's and Intel's libraries have as
 * well), or NULL for pyccmem's own threads again. Where a program's OpenMP threads wait for work by
 * spinning, others get no processor beside them. A forked child always has its own. */
void ccmem_set_openmp(void *gomp_parallel);

/* ---- root keys ------------------------------------------------------------------------------- */

/* The best level that secret memory reaches in this process now; a probe, it keeps nothing. */
ccmem_secret_level ccmem_secret_probe(void);

/* How many slots of secret memory are in use, of keys and of all that was derived from them. */
uint64_t ccmem_secret_slots(void);

/* A new random root key in secret memory of at least level `require`, or of just the level that
 * CCMEM_SECRET_MLOCK_ONLY says; what is derived from it lies in such memory as well. On success
 * *out owns it until ccmem_key_free. CCMEM_ERR_SECRETMEM, _MEMLOCK, _NOMEM, _ENTROPY. */
ccmem_status ccmem_key_generate(ccmem_secret_level require, ccmem_key **out);

/* A root key from the caller's bytes, which are copied and not wiped. Errors as above. */
ccmem_status ccmem_key_from_bytes(const uint8_t key[32], ccmem_secret_level require,
                                  ccmem_key **out);

/* A root key read from an open descriptor straight into secret memory: exactly 32 bytes, or 64
 * hexadecimal digits with up to 16 spaces, tabs and ends of lines after them, and with or without
 * UTF-8's byte order mark before. The descriptor stays open.
 * Errors as above, CCMEM_ERR_IO (errno set), CCMEM_ERR_KEYFILE. */
ccmem_status ccmem_key_from_fd(int fd, ccmem_secret_level require, ccmem_key **out);

/* A root key from n bytes of text, which are copied and not wiped: 64 hexadecimal digits, or 32
 * bytes in base64 (RFC 4648) of either alphabet, with or without padding; blanks as above. Errors
 * as above. */
ccmem_status ccmem_key_from_text(const uint8_t *text, size_t n, ccmem_secret_level require,
                                 ccmem_key **out);

/* Overwrites with zeros the values that the process's environment block has for `name`, before it
 * is unset. Returns how many there were. No other thread may change the environment meanwhile. */
uint64_t ccmem_environment_wipe(const char *name);

/* The secret-memory level the key lies in. */
ccmem_secret_level ccmem_key_level(const ccmem_key *key);

/* CCMEM_OK, or CCMEM_ERR_FORK in a process forked from the one that made the key. */
ccmem_status ccmem_key_check(const ccmem_key *key);

/* Wipes and frees. NULL is allowed. In a forked child it frees only what the child inherited. */
void ccmem_key_free(ccmem_key *key);

/* Overwrites n bytes at p with zeros in a way the compiler cannot remove. */
void ccmem_wipe(void *p, size_t n);

/* Overwrites the calling thread's stack below the caller, up to 256 KiB of it and as far as there
 * is any: where libraries that were called before have left plaintext. With an OpenMP library's
 * GOMP_parallel() as `gomp_parallel` (NULL: none), in a team of so many threads: those that its
 * products ran in. Nothing where a stack's bounds are not known. */
void ccmem_wipe_stacks(void *gomp_parallel, uint32_t threads);

/* ---- stores ---------------------------------------------------------------------------------- */

typedef struct ccmem_stats {
    uint64_t reads;              /* calls of ccmem_store_read */
    uint64_t writes;             /* calls of ccmem_store_write */
    uint64_t bytes_read;         /* plaintext bytes handed out */
    uint64_t bytes_written;      /* plaintext bytes taken in */
    uint64_t pages_opened;       /* whole or partial page decryptions */
    uint64_t pages_sealed;       /* whole page encryptions, each one under a new version */
    uint64_t tweak_hits;         /* tweaks found in the cache */
    uint64_t tweak_misses;       /* tweaks computed for lack of a cache entry */
    uint64_t retries;            /* reads repeated because a writer changed the page meanwhile */
    uint64_t integrity_failures; /* times a page did not match its tag */
} ccmem_stats;

/* Which page a call found changed. */
typedef struct ccmem_failure {
    uint64_t page;
    uint64_t version; /* it was opened under; 0: it is marked as never written; from 2^63 on: it is
                       * marked as being written, and no thread is writing */
} ccmem_failure;

/* A store of `nbytes` bytes, rounded up to whole pages, that reads as zeros. Subkeys are derived
 * from `key` and a fresh random store id (SP 800-108 counter mode, AES-CMAC); the key is not
 * needed afterwards. `page_size` is a power of two from CCMEM_PAGE_SIZE_MIN to _MAX.
 * `version_limit` is the highest version a page may reach (0, or more than that: the suite's own
 * limit, 2^63 - 1, of GCM 2^48 - 1).
 * `tweak_cache_entries` bounds the tweak cache of the XTS ciphers (0: off; rounded up to a power of
 * two, never more than the pages need). A store of CCMEM_FRESH_ONCE has nothing in it yet, where
 * others read as zeros. CCMEM_ERR_ARGUMENT, _NOMEM, _MEMLOCK, _SECRETMEM, _FORK, _ENTROPY. */
ccmem_status ccmem_store_new(const ccmem_key *key, ccmem_cipher cipher, uint64_t nbytes,
                             uint32_t page_size, uint64_t version_limit,
                             uint32_t tweak_cache_entries, ccmem_freshness freshness,
                             ccmem_store **out);

/* A store of the size, cipher, page size and tweak cache of another, under `key`, or (NULL) under a
 * random key of its own, in secret memory of the level that the other's key was to have, and
 * counters that go on where the other's are. It holds zeros, or nothing yet, as ccmem_store_new()
 * says. Not like a store over a file: CCMEM_ERR_ARGUMENT. Other errors as of ccmem_store_new(). */
ccmem_status ccmem_store_like(const ccmem_store *like, const ccmem_key *key,
                              ccmem_freshness freshness, ccmem_store **out);

/* Seals n bytes from `data` as the next pages of a store of CCMEM_FRESH_ONCE, from `offset` on: as
 * many bytes as were filled before. n is whole pages, or ends with the store. A page that is not
 * yet filled is CCMEM_ERR_INTEGRITY when it is read; with a cipher without tags it is garbage.
 * CCMEM_ERR_ARGUMENT: another store, or n is neither; CCMEM_ERR_FROZEN: `offset` is not the end of
 * what is filled, so that a page would be sealed twice, or none between; CCMEM_ERR_RANGE, _FORK,
 * _CLOSED. Nothing has changed then. */
ccmem_status ccmem_store_fill(ccmem_store *store, uint64_t offset, const void *data, uint64_t n);

/* Ends writes (1), or lets them go on (0). Once it has returned, none is under way, and each gets
 * CCMEM_ERR_FROZEN; one that was cut short has written some of its pages. CCMEM_ERR_ARGUMENT for a
 * store that shares its key with others, _FORK, _CLOSED. */
ccmem_status ccmem_store_end_writes(ccmem_store *store, int end);

/* Where the versions of the store's pages are. */
ccmem_freshness ccmem_store_freshness(const ccmem_store *store);

/* Decrypts n bytes from `offset` into `out`. Each page is read as one writer left it; a range over
 * several pages may see some before and some after a concurrent write. On CCMEM_ERR_RANGE and
 * CCMEM_ERR_FORK nothing is written. CCMEM_ERR_INTEGRITY (authenticated ciphers): a page was
 * changed, all n bytes of `out` are zero, and ccmem_last_failure tells which page. */
ccmem_status ccmem_store_read(ccmem_store *store, uint64_t offset, void *out, uint64_t n);

/* Encrypts n bytes from `data` to `offset`; every page touched moves to its next version, pages
 * covered in part keep their other bytes. `data` must not overlap the store's own ciphertext.
 * On CCMEM_ERR_RANGE, CCMEM_ERR_FORK, CCMEM_ERR_VERSION nothing has changed, nor on
 * CCMEM_ERR_INTEGRITY: a page to be covered in part was changed (both under concurrent writers to
 * the same pages: some whole pages may have been written). A page covered as a whole, up to the end
 * of the store, is replaced without a look at what it was. A store that ccmem_store_map()
 * made: CCMEM_ERR_READONLY, one of CCMEM_FRESH_ONCE: CCMEM_ERR_FROZEN, here and below. */
ccmem_status ccmem_store_write(ccmem_store *store, uint64_t offset, const void *data, uint64_t n);

/* Decrypts `count` runs of `run` bytes each, from offsets[i] to out + i * run. All runs are checked
 * first: on CCMEM_ERR_RANGE and CCMEM_ERR_FORK nothing is written. On CCMEM_ERR_INTEGRITY all of
 * `out` is zero. */
ccmem_status ccmem_store_gather(ccmem_store *store, const uint64_t *offsets, uint64_t count,
                                uint64_t run, void *out);

/* Encrypts `count` runs of `run` bytes each, from data + i * run to offsets[i], in order where runs
 * overlap. Errors as for ccmem_store_write; CCMEM_ERR_VERSION and CCMEM_ERR_INTEGRITY may leave a
 * prefix of the runs written. */
ccmem_status ccmem_store_scatter(ccmem_store *store, const uint64_t *offsets, uint64_t count,
                                 uint64_t run, const void *data);

/* Copies the versions of `count` pages from page `first`. 0 means never written. */
ccmem_status ccmem_store_versions(ccmem_store *store, uint64_t first, uint64_t count,
                                  uint64_t *out);

/* Opens `count` pages from page `first` without handing anything out, in several threads. bad[i] is
 * set to 1 for a page that does not match its tag, or whose version differs from the copy of it,
 * else to 0; *failures counts these, and the status is CCMEM_OK all the same. CCMEM_ERR_ARGUMENT
 * for a cipher without tags, CCMEM_ERR_RANGE, CCMEM_ERR_FORK. */
ccmem_status ccmem_store_verify(ccmem_store *store, uint64_t first, uint64_t count, uint8_t *bad,
                                uint64_t *failures);

/* The page behind the last CCMEM_ERR_INTEGRITY that a store function returned in this thread. */
ccmem_failure ccmem_last_failure(void);

/* What a cipher suite is. */
typedef struct ccmem_suite {
    const char *name;      /* of the suite, and the label that its subkeys are derived under */
    uint32_t subkey_size;  /* bytes that are derived for a store */
    uint32_t tag_size;     /* bytes of a page's tag; 0: no tags, and no change is noticed */
    uint32_t aes_rounds;   /* for each 16 bytes, which bound its speed; 0: it is not made of AES */
    uint32_t key_bits;     /* of the cipher's own key */
    uint32_t blocks_log2;  /* of blocks of 16 bytes that one key should seal at most: log2 of it;
                            * 0: 2^48 pages instead */
    const char *standards; /* that define the cipher and its mode */
} ccmem_suite;

/* The description of a cipher; NULL outside the enumeration. */
const ccmem_suite *ccmem_suite_of(ccmem_cipher cipher);

/* 1 when pages of this cipher carry a tag, else 0. */
int ccmem_cipher_authenticated(ccmem_cipher cipher);

/* Where the store keeps its versions (NULL: nowhere, all are 1) and tags (16 bytes a page; NULL for
 * a cipher without), for tests that damage them. Nothing else may write there. CCMEM_ERR_FORK. */
ccmem_status ccmem_store_records(ccmem_store *store, uint64_t **versions, uint8_t **tags);

/* Where it keeps the copies of its versions, in the same way; NULL where it has none.
 * CCMEM_ERR_FORK. */
ccmem_status ccmem_store_copies(ccmem_store *store, uint64_t **copies);

/* The path of the file that the store's page was to come from, when it could not be had: the file
 * was cut short while the store was open, or its file system failed, and the page read as zeros,
 * which is CCMEM_ERR_INTEGRITY. NULL for every other page. The text stays valid. */
const char *ccmem_store_lost(const ccmem_store *store, uint64_t page);

/* Adds up the store's counters. They are exact while no other thread uses the store. */
ccmem_status ccmem_store_stats(ccmem_store *store, ccmem_stats *out);

/* CCMEM_OK, or CCMEM_ERR_FORK in a process forked from the one that made the store. */
ccmem_status ccmem_store_check(const ccmem_store *store);

/* The size asked for at ccmem_store_new, in bytes. */
uint64_t ccmem_store_size(const ccmem_store *store);

/* The secret-memory level the store's subkeys lie in. */
ccmem_secret_level ccmem_store_level(const ccmem_store *store);

/* Bytes of versions, tweak cache and bookkeeping that the store keeps beside its pages. */
uint64_t ccmem_store_overhead(const ccmem_store *store);

/* Wipes the subkeys, drops the store's own reference to its ciphertext, frees. NULL is allowed. */
void ccmem_store_free(ccmem_store *store);

/* A new reference to the store's ciphertext, which outlives the store until released. */
ccmem_mapping *ccmem_store_mapping(ccmem_store *store);

/* The first byte and the length of the mapped ciphertext (whole pages). */
const uint8_t *ccmem_mapping_data(const ccmem_mapping *mapping);
uint64_t ccmem_mapping_size(const ccmem_mapping *mapping);

/* Drops one reference; the last one unmaps the ciphertext. NULL is allowed. */
void ccmem_mapping_release(ccmem_mapping *mapping);

/* ---- stores that are encrypted together ------------------------------------------------------ */

typedef struct ccmem_arena_totals {
    uint64_t stores;
    uint64_t bytes;            /* of plaintext */
    uint64_t ciphertext_bytes; /* whole pages */
    uint64_t overhead_bytes;   /* versions, tags, the stores themselves, what they share */
    uint64_t integrity_failures;
} ccmem_arena_totals;

typedef void (*ccmem_done)(void);

/* An arena: a subkey of its own, derived from `key` and a fresh random store id, and memory in a
 * few large chunks, for any number of stores. Arguments and errors as of ccmem_store_new(). */
ccmem_status ccmem_arena_new(const ccmem_key *key, ccmem_cipher cipher, uint32_t page_size,
                             uint64_t version_limit, uint32_t tweak_cache_entries,
                             ccmem_freshness freshness, ccmem_arena **out);

/* A store of nbytes bytes in whole pages of the arena, holding what lies at `data`, or (NULL)
 * zeros (in an arena of CCMEM_FRESH_ONCE nothing, until it is filled). `store` is CCMEM_STORE_SIZE
 * bytes of zeros, aligned as a pointer, in which the store is
 * made: it is a ccmem_store for every function but ccmem_store_free(), goes by
 * ccmem_arena_remove(), and must not move. On failure it is zeros. CCMEM_ERR_ARGUMENT, _FORK,
 * _NOMEM, _BUDGET, and _VERSION where pages that had a store before are used up. */
ccmem_status ccmem_arena_add(ccmem_arena *arena, uint64_t nbytes, const void *data, void *store);

/* Drops a store that ccmem_arena_add() made, or CCMEM_STORE_SIZE bytes of zeros: its ciphertext is
 * discarded, and its pages may be another's. What lies at `store` must stay there as long as
 * someone may use it, who gets CCMEM_ERR_CLOSED from now on. Returns a function that does nothing,
 * which a caller who has to call something may call. */
ccmem_done ccmem_arena_remove(void *store);

/* The number in its arena of a store's first page, which tells stores that are there at once apart.
 */
uint64_t ccmem_arena_place(const ccmem_store *store);

/* The secret-memory level the arena's subkey lies in. */
ccmem_secret_level ccmem_arena_level(const ccmem_arena *arena);

/* Drops the arena's own reference to what its stores share, which goes with the last of them. NULL
 * is allowed. */
void ccmem_arena_free(ccmem_arena *arena);

/* What the stores of an arena take now. CCMEM_ERR_FORK. */
ccmem_status ccmem_arena_get_totals(const ccmem_arena *arena, ccmem_arena_totals *out);

/* ---- another key ----------------------------------------------------------------------------- */

/* How much a key has sealed, and how far the pages are that are moved to it. */
typedef struct ccmem_key_use {
    uint64_t pages_sealed;    /* under the key that pages are sealed under now, about */
    uint64_t highest_version; /* that a page has */
    uint64_t version_limit;   /* that a page may have under this key */
    uint64_t pages;           /* that there are, */
    uint64_t pages_moved;     /* of which these were looked at; all, when none are to be moved */
    int moving;               /* 1: some may be under the key before */
} ccmem_key_use;

/* Has the store's pages sealed under another subkey from now on: derived from `key`, or from a
 * random key when it is NULL, and a fresh random id. Pages that are not written stay under the old
 * subkey until ccmem_store_move() has moved them; both stay usable until then, for any number of
 * threads that read and write. Versions go on, and the version limit is then that of
 * ccmem_store_new() more than the highest that a page has now. Writers wait for one look at all
 * versions. On failure nothing has changed. CCMEM_ERR_REKEY: the pages are being moved already.
 * CCMEM_ERR_READONLY: a file's; _FROZEN: sealed once; _ARGUMENT: it shares its key with others;
 * _INTEGRITY: the version of a page was changed, or the copy of it (ccmem_last_failure() tells
 * which page; write it as a whole first); _VERSION: no higher version is left; _FORK, _CLOSED,
 * _NOMEM, _MEMLOCK, _SECRETMEM, _ENTROPY. */
ccmem_status ccmem_store_rekey(ccmem_store *store, const ccmem_key *key);

/* Looks at up to npages of the pages that are yet to be moved, and moves them, 64 KiB of plaintext
 * at a time, in the calling thread. *done is how many these were; with fewer than npages all are
 * moved, and the old subkey is overwritten. A call that finds none to move does nothing. On failure
 * all pages are as usable as before, and a later call goes on. CCMEM_ERR_INTEGRITY: a page was
 * changed, and was not moved. CCMEM_ERR_REKEY: another thread moves pages now. _ARGUMENT,
 * _READONLY, _FROZEN, _FORK, _CLOSED, _NOMEM, _BUDGET, _VERSION. */
ccmem_status ccmem_store_move(ccmem_store *store, uint64_t npages, uint64_t *done);

/* CCMEM_ERR_FORK, _CLOSED. */
ccmem_status ccmem_store_key_use(ccmem_store *store, ccmem_key_use *out);

/* The same for all stores of an arena; in a failure, pages have their numbers in the arena. */
ccmem_status ccmem_arena_rekey(ccmem_arena *arena, const ccmem_key *key);
ccmem_status ccmem_arena_move(ccmem_arena *arena, uint64_t npages, uint64_t *done);
ccmem_status ccmem_arena_key_use(ccmem_arena *arena, ccmem_key_use *out);

/* ---- files ----------------------------------------------------------------------------------- */

/* Wraps the 32 bytes of `data_key` (AES-256 key wrap: KW of SP 800-38F, RFC 3394) under a
 * key-encryption key that is derived from `key` (SP 800-108, label "key-wrap"). CCMEM_ERR_ARGUMENT,
 * _FORK, _MEMLOCK, _SECRETMEM, _NOMEM. */
ccmem_status ccmem_key_wrap(const ccmem_key *key, const ccmem_key *data_key, uint8_t wrapped[40]);

/* The key that ccmem_key_wrap() wrapped, in secret memory of at least level `require`, and for
 * CCMEM_SECRET_MLOCK of what `key` was to have. On success
 * *out owns it until ccmem_key_free. CCMEM_ERR_INTEGRITY: it was wrapped under another key, or
 * changed. Other errors as above. */
ccmem_status ccmem_key_unwrap(const ccmem_key *key, const uint8_t wrapped[40],
                              ccmem_secret_level require, ccmem_key **out);

/* A key derived from `key` for one context, whose SHA-256 is `digest` (SP 800-108, label
 * "key-context"), in secret memory as `key` was to have. What is wrapped under it opens for no
 * other context. On success *out owns it until ccmem_key_free. Errors of ccmem_key_wrap(). */
ccmem_status ccmem_key_for_context(const ccmem_key *key, const uint8_t digest[32], ccmem_key **out);

/* A name of the key for everybody, derived with a label of its own ("key-id"): it tells keys apart
 * and reveals nothing else. CCMEM_ERR_ARGUMENT, _FORK. */
ccmem_status ccmem_key_id(const ccmem_key *key, uint8_t id[16]);

/* A MAC of n bytes about pages of this suite, under a key of 32 bytes that is derived from `key`
 * for this purpose (label "key-mac") and this context: AES-CMAC; under SM4 the first half of HMAC
 * over SM3. CCMEM_ERR_ARGUMENT, _FORK, _MEMLOCK, _SECRETMEM, _NOMEM. */
ccmem_status ccmem_key_mac(const ccmem_key *key, ccmem_cipher cipher, const uint8_t context[16],
                           const uint8_t *msg, size_t n, uint8_t tag[16]);

/* The key's 32 bytes, for a key service that wraps them itself. The caller wipes `out`.
 * CCMEM_ERR_ARGUMENT, _FORK. */
ccmem_status ccmem_key_copy(const ccmem_key *key, uint8_t out[32]);

/* A sealer of the pages of the store `id`, which nothing else seals or has sealed under this key:
 * the caller draws it at random. Authenticated ciphers only. CCMEM_ERR_ARGUMENT, _FORK, _MEMLOCK,
 * _SECRETMEM, _NOMEM. */
ccmem_status ccmem_sealer_new(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                              uint32_t page_size, ccmem_sealer **out);

/* Encrypts `npages` pages, the first with number `first_page`, from `in` to `out` (the same, or no
 * overlap), all under version 1, and writes their tags, 16 bytes a page; in several threads. Pages
 * go up: CCMEM_ERR_ARGUMENT, and nothing is sealed, for one at or below a page that this sealer has
 * sealed. CCMEM_ERR_FORK. */
ccmem_status ccmem_sealer_seal(ccmem_sealer *sealer, uint64_t first_page, uint64_t npages,
                               const uint8_t *in, uint8_t *out, uint8_t *tags);

/* Wipes and frees. NULL is allowed. */
void ccmem_sealer_free(ccmem_sealer *sealer);

/* A read-only store over `nbytes` bytes, rounded up to whole pages, of the open file `fd` from byte
 * `offset`, a multiple of CCMEM_PAGE_SIZE_MIN. The pages are mapped (MAP_SHARED, PROT_READ), so
 * that processes share them in the page cache; the descriptor may be closed afterwards. Others may
 * write the file: a page that is not as it was sealed is CCMEM_ERR_INTEGRITY when it is
 * opened, and ccmem_store_lost() tells when the file was cut short. With `anonymous` the pages are
 * read into memory of their own instead.
 *
 * Versions (1 to 2^63 - 1, little-endian as in the file on every processor) and tags (16 bytes a
 * page) are copied. Subkeys are derived from `key` and `id`, as those of ccmem_sealer_new().
 * Whatever would write to such a store returns CCMEM_ERR_READONLY.
 *
 * CCMEM_ERR_ARGUMENT (among others: a cipher that is not authenticated, a version out of range),
 * CCMEM_ERR_RANGE (the file ends before its pages do), CCMEM_ERR_IO (errno says why), _FORK,
 * _NOMEM, _MEMLOCK, _SECRETMEM. */
ccmem_status ccmem_store_map(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                             uint64_t nbytes, uint32_t page_size, int fd, uint64_t offset,
                             int anonymous, const uint64_t *versions, const uint8_t *tags,
                             ccmem_store **out);

/* What read-only stores over one file share: the key, from which each store's subkey is derived
 * when it is used, and the mapping of the pages, which lie from byte `begin` to byte `end`. Nothing
 * is mapped or read before the first store. Arguments and errors as above. On success *out owns it
 * until ccmem_file_free(). */
ccmem_status ccmem_file_new(const ccmem_key *key, ccmem_cipher cipher, uint32_t page_size,
                            uint64_t begin, uint64_t end, int anonymous, ccmem_file **out);

/* A store as of ccmem_store_map(), over nbytes bytes from `offset` on in the file, which is open as
 * `fd`, for little: all such stores of a file have one mapping, of which a store's part is let go
 * when it is removed. Counters are the file's. `records` are what the file has of the pages: their
 * versions, then their tags. `store` is CCMEM_FILE_STORE_SIZE bytes of zeros, and
 * CCMEM_FILE_RECORD_SIZE for each page if there are no more than CCMEM_FILE_RECORDS_MAX, aligned as
 * a pointer, in which the store is made: it is a ccmem_store for every function but
 * ccmem_store_free(), goes by ccmem_file_remove(), and must not move. On failure it is no store.
 * CCMEM_ERR_ARGUMENT: also for pages beyond those that were announced. */
ccmem_status ccmem_file_add(ccmem_file *file, int fd, uint64_t offset, uint64_t nbytes,
                            const uint8_t id[16], const void *records, void *store);

/* The same over pages that lie at `pages` in memory of the caller's, a multiple of 64, which are
 * not copied. The memory stays readable until the store is removed and no mapping of it is left.
 * Others may change it at any time. Nothing is ever written there. CCMEM_ERR_ARGUMENT, _FORK,
 * _NOMEM. */
ccmem_status ccmem_file_add_lent(ccmem_file *file, const uint8_t *pages, uint64_t nbytes,
                                 const uint8_t id[16], const void *records, void *store);

/* Wipes the file's key and all that was derived from it. From the return on every use of the pages
 * of its stores is CCMEM_ERR_WITHHELD, with the output as after CCMEM_ERR_INTEGRITY, until
 * ccmem_file_restore() gives the key back; it must be the same, or no page will match its tag. What
 * other threads have begun before may still succeed. A touch of a mapping has no caller to tell:
 * the process ends. Both may be repeated. CCMEM_ERR_FORK, and for the key CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_file_withhold(ccmem_file *file);
ccmem_status ccmem_file_restore(ccmem_file *file, const ccmem_key *key);

/* Drops a store that one of these made, or was to make, as ccmem_arena_remove() does. */
ccmem_done ccmem_file_remove(void *store);

/* The secret-memory level the subkeys of the file's stores lie in. */
ccmem_secret_level ccmem_file_level(const ccmem_file *file);

/* Bytes that the stores of the file have in common, beside their pages. */
uint64_t ccmem_file_overhead(const ccmem_file *file);

/* Drops the file's own reference to what its stores share, which goes with the last of them. NULL
 * is allowed. */
void ccmem_file_free(ccmem_file *file);

/* How these stores come by a file's pages: all processes share them; mapped, but not shared, on
 * a file system that has no shared mappings (FUSE with direct I/O); read into memory, as asked for
 * or because the file system has no mappings at all. */
typedef enum ccmem_file_way {
    CCMEM_FILE_SHARED,
    CCMEM_FILE_PRIVATE,
    CCMEM_FILE_READ
} ccmem_file_way;

/* What the last ccmem_store_map() or ccmem_file_add() of this thread that was successful did. */
ccmem_file_way ccmem_store_map_way(void);

/* ---- products with an encrypted matrix ------------------------------------------------------- */

/* What the elements of an encrypted matrix are, in the processor's byte order. */
typedef enum ccmem_dtype {
    CCMEM_F32 = 0,
    CCMEM_F16,  /* IEEE 754 binary16 */
    CCMEM_BF16, /* the upper half of a float32 */
    CCMEM_I8
} ccmem_dtype;

/* For r < nrows and o < out_features:
 *
 *     y[r * ldy + o] = scale[o] * sum over i of x[r * ldx + i] * W[o][i] + bias[o]
 *
 * W has out_features rows of in_features elements each, one after the other from byte `offset` of
 * the store, any byte. `scale` and `bias` may be NULL: 1 and 0. y overlaps nothing else. W is
 * opened a few pages at a time into registers, or into blocks of ccmem_plain_alloc(), one in each
 * thread, that are wiped.
 *
 * Sums and products are float32: the result differs from the exact one by at most
 * g * (|scale[o]| * sum over i of |x[r][i] * W[o][i]| + |bias[o]|), where g = k*u / (1 - k*u),
 * u = 2^-24, unless a float32 overflows or underflows; k = in_features / 32 rounded up, plus 9, for
 * one row of x, and in_features + 9 for more, which are summed in longer chains. Its bits depend on
 * the row of x, the row of W, scale[o], bias[o], the tier, and on which of three orders the sums
 * have: of one row, of few (up to 48), or of panels (more; some tiers take whole panels from 15
 * rows on, too, if dtype is CCMEM_F32). nrows, in_features and dtype say which: not where W lies,
 * nor the cipher, what other rows hold, threads, or the caller's rounding mode.
 *
 * Each page is read as one writer left it. On any failure all of y that lies in its rows is zero:
 * CCMEM_ERR_ARGUMENT (ldx < in_features or ldy < out_features with more than one row, an unknown
 * type, a NULL that is needed; y is then left alone), _RANGE, _FORK, _NOMEM; CCMEM_ERR_INTEGRITY as
 * for ccmem_store_read. */
ccmem_status ccmem_store_linear(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                                uint64_t out_features, uint64_t in_features, const float *scale,
                                const float *x, uint64_t nrows, uint64_t ldx, const float *bias,
                                float *y, uint64_t ldy);

/* What is added to each row of a product: out_features elements, at `data`, or in `store` from byte
 * `offset`, or neither. */
typedef struct ccmem_bias {
    const void *data;
    ccmem_store *store;
    uint64_t offset;
    ccmem_dtype dtype; /* CCMEM_F32 or CCMEM_BF16 */
} ccmem_bias;

/* ccmem_store_linear() without a scale, for x, a bias and y of float32 or bfloat16 each, x and y
 * with their rows one after the other. Sums are float32, and rounded once, to the nearest (of two
 * the even one), where y is bfloat16. Errors as there, on all of which but CCMEM_ERR_ARGUMENT y is
 * zero; a bias that fails its tags is CCMEM_ERR_INTEGRITY, too. CCMEM_ERR_ARGUMENT for other types
 * and for a bias in both places. */
ccmem_status ccmem_store_linear_typed(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                                      uint64_t out_features, uint64_t in_features, const void *x,
                                      ccmem_dtype x_dtype, uint64_t nrows, ccmem_bias bias, void *y,
                                      ccmem_dtype y_dtype);

/* One of several matrices that stand for one, one below the other: out_features rows from byte
 * `offset` of a store on. */
typedef struct ccmem_part {
    ccmem_store *store;
    uint64_t offset;
    uint64_t out_features;
} ccmem_part;

/* ccmem_store_linear_typed() with nparts > 0 matrices of one type and width: a row of y has the
 * results of the first, then those of the second. A bias has one element for each of these. An
 * error is that of the first part that fails; then nothing of any is left in y. */
ccmem_status ccmem_store_linear_parts(const ccmem_part *parts, uint64_t nparts, ccmem_dtype dtype,
                                      uint64_t in_features, const void *x, ccmem_dtype x_dtype,
                                      uint64_t nrows, ccmem_bias bias, void *y,
                                      ccmem_dtype y_dtype);

/* ---- block-quantised weights ----------------------------------------------------------------- */

/* How weights of a few bits lie in memory: a block of consecutive elements of a row has its scales,
 * then its whole numbers. The first are byte for byte as in GGUF files; K formats have 256 elements
 * a block, the others 32. Of the groups, the number is that of elements in a block: it begins with
 * a float32 scale, _ZP with a float32 offset after it, both little-endian, and an element is
 * scale * q + offset. INT8: q is a signed byte. INT4: q is a nibble, less 8 where there is no
 * offset; of each 32 elements, byte i of 16 has element i in its lower half and element i + 16 in
 * its upper one. CCMEM_INT8_ROW: signed bytes alone, the scale of each row lies elsewhere. */
typedef enum ccmem_block_format {
    CCMEM_Q4_0 = 0,
    CCMEM_Q4_1,
    CCMEM_Q5_0,
    CCMEM_Q5_1,
    CCMEM_Q8_0,
    CCMEM_Q2_K,
    CCMEM_Q3_K,
    CCMEM_Q4_K,
    CCMEM_Q5_K,
    CCMEM_Q6_K,
    CCMEM_IQ4_NL,
    CCMEM_IQ4_XS,
    CCMEM_INT4_G32,
    CCMEM_INT4_G64,
    CCMEM_INT4_G128,
    CCMEM_INT4_G32_ZP,
    CCMEM_INT4_G64_ZP,
    CCMEM_INT4_G128_ZP,
    CCMEM_INT8_G32,
    CCMEM_INT8_G64,
    CCMEM_INT8_G128,
    CCMEM_INT8_G32_ZP,
    CCMEM_INT8_G64_ZP,
    CCMEM_INT8_G128_ZP,
    CCMEM_INT8_ROW,
    CCMEM_BLOCK_FORMATS
} ccmem_block_format;

/* Elements, and bytes, of a block; 0 outside the enumeration. CCMEM_INT8_ROW: 1 and 1. */
size_t ccmem_block_elements(ccmem_block_format format);
size_t ccmem_block_bytes(ccmem_block_format format);

/* The elements of so many blocks, one block after the other, as float32. Each operation is rounded
 * to float32, in the order that gguf's Python package has, so that the numbers are the same to the
 * bit; CCMEM_INT8_ROW: q itself. Neither branches nor addresses depend on what is in the blocks,
 * and nothing of it stays on the stack. CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_blocks_dequantize(ccmem_block_format format, const uint8_t *blocks,
                                     uint64_t nblocks, float *out);

/* Blocks for nblocks times as many floats as a block has elements, of any format but
 * CCMEM_INT8_ROW: scales by a search for the least squared error, whole numbers the nearest ones.
 * Neither branches nor addresses depend on the floats, but the status, and nothing of them stays on
 * the stack. CCMEM_ERR_ARGUMENT, also when a float is infinite or not a number: `out` then holds
 * nothing of use. */
ccmem_status ccmem_blocks_quantize(ccmem_block_format format, const float *x, uint64_t nblocks,
                                   uint8_t *out);

/* The same for CCMEM_INT8_ROW: nrows rows of ncols floats become as many signed bytes from -127 to
 * 127, and nrows scales. */
ccmem_status ccmem_rows_quantize(const float *x, uint64_t nrows, uint64_t ncols, uint8_t *out,
                                 float *scale);

/* For r < nrows and o < out_features, with rows one after the other:
 *
 *     y[r][o] = sum over i of x[r][i] * W[o][i] + bias[o]
 *
 * W has out_features rows of in_features elements in blocks of the format, one after the other from
 * byte `offset` of the store, any byte; in_features is a multiple of a block's elements. `bias` may
 * be NULL: 0. `scale` has a float for each row where the format is CCMEM_INT8_ROW, and is NULL
 * else. y overlaps nothing else.
 *
 * x is quantised to 8 bits: for K formats and IQ4_XS 256 elements at a time, for the others 32,
 * whose largest size becomes 127. Products are whole numbers then; what is rounded where, and the
 * bound of the result, are in docs/design/quantized-products.md. A result's bits depend on the row
 * of x, the row of W, and bias[o]: not on the tier, nrows, where W lies, the cipher, threads, or
 * the caller's rounding mode. Where x has an infinite element, or one that is no number, all of y's
 * row is none. CCMEM_INT8_ROW is multiplied as by ccmem_store_linear_int8().
 *
 * Opening, wiping and errors are as for ccmem_store_linear(). CCMEM_ERR_ARGUMENT also for an
 * unknown format and a number of elements that is not whole blocks. */
ccmem_status ccmem_store_linear_blocks(ccmem_store *store, uint64_t offset,
                                       ccmem_block_format format, uint64_t out_features,
                                       uint64_t in_features, const float *scale, const float *x,
                                       uint64_t nrows, const float *bias, float *y);

/* ccmem_store_linear_blocks() for x, a bias and y of float32 or bfloat16 each, and a bias that may
 * be encrypted: what ccmem_store_linear_typed() is to ccmem_store_linear(). Sums are float32, and
 * rounded once more where y is bfloat16. On every failure but CCMEM_ERR_ARGUMENT y is zero. */
ccmem_status ccmem_store_linear_blocks_typed(ccmem_store *store, uint64_t offset,
                                             ccmem_block_format format, uint64_t out_features,
                                             uint64_t in_features, const float *scale,
                                             const void *x, ccmem_dtype x_dtype, uint64_t nrows,
                                             ccmem_bias bias, void *y, ccmem_dtype y_dtype);

/* The product of a matrix of int8 with rows of x that are rounded to int8, in whole numbers. For
 * each row of x, of n = in_features numbers:
 *
 *     most = max |x[i]|,   step = most / 127,   q[i] = x[i] * (127 / most) to the nearest whole
 *     y[o] = (float)(sum over i of q[i] * W[o][i]) * (step * scale[o]) + bias[o]
 *
 * All of these are float32, each operation rounded once, to the nearest and of two the even one, in
 * the order written; where most is below 2^-100, x and most are multiplied by 2^100 before q. The
 * sum is exact, so the same arguments give the same bits in every tier, and each row of y depends
 * on nothing but its row of x. |y[o] - sum over i of x[i] * scale[o] * W[o][i] - bias[o]| is at
 * most, to first order and where nothing is subnormal,
 *
 *     step / 2 * |scale[o]| * sum over i of |W[o][i]| * (1 + 2^-15) + 2^-22 * (|y[o]| + |bias[o]|)
 *
 * A row of x with an infinite number or a NaN gives a row of NaNs. W has out_features rows of
 * in_features bytes from byte `offset` of the store; `scale` has one number for each row. x and y
 * are of float32 or bfloat16 each, rows one after the other; y of bfloat16 is rounded once more.
 * Errors as of ccmem_store_linear_typed(), on all of which but CCMEM_ERR_ARGUMENT y is zero. */
ccmem_status ccmem_store_linear_int8(ccmem_store *store, uint64_t offset, uint64_t out_features,
                                     uint64_t in_features, const float *scale, const void *x,
                                     ccmem_dtype x_dtype, uint64_t nrows, ccmem_bias bias, void *y,
                                     ccmem_dtype y_dtype);

/* ---- the plaintext budget -------------------------------------------------------------------- */

typedef struct ccmem_plaintext_stats {
    uint64_t budget;     /* the limit; 0: none */
    uint64_t reserved;   /* bytes of blocks handed out and of windows, filled or not */
    uint64_t resident;   /* those of them that hold plaintext */
    uint64_t peak;       /* the most bytes ever resident at once */
    double byte_seconds; /* resident bytes times the seconds they were so, added up */
} ccmem_plaintext_stats;

/* Bounds the bytes that blocks of ccmem_plain_alloc() and the windows of regions take together, for
 * the whole process; 0: no bound. CCMEM_ERR_BUDGET when more are taken now: nothing has changed. */
ccmem_status ccmem_set_plaintext_budget(uint64_t bytes);

/* The budget's state in this process; a forked child counts from zero. */
void ccmem_plaintext_get_stats(ccmem_plaintext_stats *out);

/* ---- plain pointers over a store ------------------------------------------------------------- */

/* How a region learns that a thread has touched what is not there. */
typedef enum ccmem_fault {
    CCMEM_FAULT_AUTO = 0, /* the first of these that can be had, and does what is asked for */
    CCMEM_FAULT_UFFD,     /* userfaultfd(2) and a thread that answers, frames moved by UFFDIO_MOVE
                           * (Linux 6.8) */
    CCMEM_FAULT_UFFD_SIGNAL, /* the same, answered by the thread that touched, in a handler of
                                SIGBUS */
    CCMEM_FAULT_UFFD_COPY, /* as the first, frames copied in and moved out by mremap(2) (Linux 5.7)
                            */
    CCMEM_FAULT_SIGSEGV    /* protected pages and a handler of SIGSEGV (Linux 5.7) */
} ccmem_fault;

typedef struct ccmem_region_options {
    uint64_t window;  /* bytes that may be resident at once */
    uint64_t block;   /* bytes that one fault fills, a power of two; 0: chosen by size and window */
    int writable;     /* blocks are written back */
    int read_ahead;   /* open the next blocks while one is used in order */
    int system_calls; /* have the kernel's own accesses wait as well, where the system permits that:
                       * CCMEM_FAULT_AUTO then prefers a mechanism that can, and else the fastest */
    ccmem_fault fault;
    const char *name; /* what a message calls it; copied */
} ccmem_region_options;

typedef struct ccmem_region_stats {
    uint64_t window; /* bytes of all frames */
    uint64_t block;
    uint64_t resident;    /* bytes in frames that hold plaintext now */
    uint64_t peak;        /* the most at once */
    uint64_t faults;      /* touches of a block that was not there, of waiting threads each */
    uint64_t fills;       /* blocks opened */
    uint64_t read_ahead;  /* fills before anyone had asked */
    uint64_t evictions;   /* blocks taken away for others */
    uint64_t write_backs; /* blocks sealed under new versions */
    int kernel_faults;    /* 1: system calls may be handed what is not resident */
    ccmem_fault fault;    /* the mechanism in use */
} ccmem_region_stats;

/* The least number of blocks that a window must hold, unless it holds them all: an instruction may
 * touch as many at once. */
enum { CCMEM_WINDOW_BLOCKS = 4 };

/* A range of addresses at which `nbytes` > 0 bytes of the store, from byte `offset`, are read and,
 * with `writable`, written like memory. It holds nothing until it is touched: a touched block is
 * opened into a frame of the window, and another one is sealed, where it may have been written, and
 * overwritten or wiped. A block is opened as the store is at that moment; where the region is
 * writable, what others write to a block meanwhile is lost when it is evicted.
 *
 * The window is taken from the plaintext budget. A writable region and any other do not overlap.
 * The range is not dumped, and a child of a fork gets SIGSEGV there. A write where the region is
 * not writable ends the process, or is lost if it comes in the moment in which its block is placed.
 * With a mechanism of signals, see ccmem_signals_lead().
 *
 * A touch has no caller to return an error to. When a page is found changed, or cannot be sealed,
 * all windows of the process are wiped, and it ends by SIGABRT with a message on the standard
 * error.
 *
 * The store must outlive the region. On success *out owns it until ccmem_region_free.
 * CCMEM_ERR_RANGE, _FORK, _READONLY; _ARGUMENT (a window of fewer than CCMEM_WINDOW_BLOCKS blocks
 * that does not hold all of them, a block smaller than a page of the store or the system), _BUDGET,
 * _MAPPED, _FAULT (errno says why), _THREAD, _NOMEM, _SECRETMEM (what the range must be kept out of
 * cannot be promised). */
ccmem_status ccmem_region_new(ccmem_store *store, uint64_t offset, uint64_t nbytes,
                              const ccmem_region_options *options, ccmem_region **out);

/* The address of the store's byte `offset`, fixed until ccmem_region_free. */
uint8_t *ccmem_region_data(ccmem_region *region);

/* Opens what of n bytes from `offset` in the region is not resident, as much as the window holds.
 * CCMEM_ERR_INTEGRITY (as for ccmem_store_read), _VERSION when another block cannot be sealed,
 * _RANGE, _FORK, _ARGUMENT after ccmem_region_close(). */
ccmem_status ccmem_region_prefault(ccmem_region *region, uint64_t offset, uint64_t n);

/* The same, and the blocks stay resident, and where the region is writable count as written, until
 * ccmem_region_unpin() of the same range; a system call may be handed them whatever the mechanism.
 * CCMEM_ERR_PINNED, with nothing pinned, where fewer than CCMEM_WINDOW_BLOCKS frames would be left
 * to the blocks that are not pinned. */
ccmem_status ccmem_region_pin(ccmem_region *region, uint64_t offset, uint64_t n);

/* Undoes one ccmem_region_pin(). CCMEM_ERR_RANGE, _FORK, _ARGUMENT. */
ccmem_status ccmem_region_unpin(ccmem_region *region, uint64_t offset, uint64_t n);

/* Seals all that may have been written; it stays resident. Errors as for ccmem_store_write; the
 * rest is sealed all the same. */
ccmem_status ccmem_region_flush(ccmem_region *region);

/* The same, then wipes the window and gives back all but the range itself, which stays reserved, so
 * that a late use is SIGSEGV and never another object's memory. May be repeated. */
ccmem_status ccmem_region_close(ccmem_region *region);

/* The counters, after ccmem_region_close() those at that time. CCMEM_ERR_FORK. */
ccmem_status ccmem_region_get_stats(ccmem_region *region, ccmem_region_stats *out);

/* What regions are open over a store. */
typedef enum ccmem_store_use {
    CCMEM_UNMAPPED = 0,
    CCMEM_MAPPED_READABLE,
    CCMEM_MAPPED_WRITABLE /* one of them, at least */
} ccmem_store_use;

ccmem_store_use ccmem_store_mapped(const ccmem_store *store);

/* The counters of all regions that this process has had, added up; `peak` and what follows
 * write_backs are not. */
void ccmem_regions_get_stats(ccmem_region_stats *out);

/* Puts the handlers of SIGSEGV and SIGBUS that answer touches of regions and of lost pages in front
 * of those that others have set since; 1 when that was not needed or is done, else 0 (errno says
 * why). To be called after whatever sets a handler. */
int ccmem_signals_lead(void);

/* ccmem_region_close(), and the range is free for others. NULL is allowed. In a forked child it
 * only frees what the child inherited. */
void ccmem_region_free(ccmem_region *region);

/* ---- key-value caches ------------------------------------------------------------------------ */

/* The keys and values that an attention has seen, as ciphertext. A cache has layers; a layer has as
 * many sequences as the cache; a sequence has one row of K and one of V for each token and head.
 *
 * What is sealed is never sealed again: each block has a number, which no other block under the
 * cache's key ever gets, and which is its nonce. A block holds the rows of one head for
 * ccmem_cache_block_tokens() tokens; those of the last tokens, too few for blocks, are sealed token
 * by token, a record for all heads. So cropping, forking and reordering share blocks and records,
 * and copy neither. The block numbers lie in locked memory; ciphertext and tags lie in ordinary
 * memory, and may be changed by anybody: every change is CCMEM_ERR_INTEGRITY. */

typedef struct ccmem_cache ccmem_cache;

enum {
    CCMEM_CACHE_ROW_MAX = 4096 /* elements of a row of K or V at most */
};

/* One layer. K and V are of the same type; CCMEM_I8 stores a float32 scale with each row. */
typedef struct ccmem_cache_layer {
    ccmem_dtype dtype;
    uint32_t heads;      /* of K and V, 1 to 65536 */
    uint32_t key_size;   /* elements of a row of K, 1 to CCMEM_CACHE_ROW_MAX */
    uint32_t value_size; /* of V */
} ccmem_cache_layer;

/* Rows in plain memory: element e of head h, token t of sequence s is at
 * data + (s * sequence + h * head + t * token) * size of an element + e: rows are dense. */
typedef struct ccmem_cache_rows {
    void *data;
    ccmem_dtype dtype;
    int64_t sequence, head, token; /* strides, in elements */
} ccmem_cache_rows;

/* An empty cache for `sequences` sequences (1 to 65536), without layers, under a random key of its
 * own in secret memory of at least level `require` (or CCMEM_SECRET_MLOCK_ONLY).
 * CCMEM_ERR_ARGUMENT, _SECRETMEM, _MEMLOCK, _NOMEM, _ENTROPY. */
ccmem_status ccmem_cache_new(uint32_t sequences, ccmem_secret_level require, ccmem_cache **out);

/* Another cache under the same key, with the same contents, which it shares: later calls change one
 * of the two. CCMEM_ERR_NOMEM, _MEMLOCK, _FORK, _CLOSED. */
ccmem_status ccmem_cache_fork(ccmem_cache *cache, ccmem_cache **out);

/* Destroys the key: from now on nothing can open the blocks of this cache and of all its forks, nor
 * copies that were made of them; CCMEM_ERR_CLOSED from every function that would have to. Takes
 * as long for a large cache as for a small one; waits for calls in other threads. May be repeated.
 * CCMEM_ERR_FORK. */
ccmem_status ccmem_cache_erase(ccmem_cache *cache);

/* Gives back the blocks that no fork shares; the last one of the forks erases. NULL is allowed. */
void ccmem_cache_free(ccmem_cache *cache);

/* CCMEM_OK; CCMEM_ERR_CLOSED after ccmem_cache_erase(), CCMEM_ERR_FORK in a forked child. */
ccmem_status ccmem_cache_check(const ccmem_cache *cache);

/* Where the cache's key lies; CCMEM_SECRET_NONE for a cache that encrypts nothing. */
ccmem_secret_level ccmem_cache_level(const ccmem_cache *cache);

/* Adds a layer without tokens; *number is its index, from 0. CCMEM_ERR_ARGUMENT, _NOMEM, _FORK. */
ccmem_status ccmem_cache_add_layer(ccmem_cache *cache, const ccmem_cache_layer *layer,
                                   uint32_t *number);

/* Tokens of a block of the layer. 0 when there is no such layer. */
uint32_t ccmem_cache_block_tokens(const ccmem_cache *cache, uint32_t layer);

/* How many tokens a sequence has had up to now, those that were evicted among them, and the first
 * one that was not. CCMEM_ERR_ARGUMENT, _FORK. */
ccmem_status ccmem_cache_length(const ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                                uint64_t *tokens, uint64_t *first);

/* Appends `tokens` rows of K and V of all heads to sequences [sequence, sequence + sequences) of a
 * layer; in the rows' strides the first of these is number 0. The rows are of the layer's type, or
 * of any type where that is CCMEM_I8 (but not CCMEM_I8 itself). On any failure nothing has changed.
 * CCMEM_ERR_ARGUMENT, _NOMEM, _MEMLOCK, _FORK, _CLOSED; _INTEGRITY: a record was changed;
 * _VERSION: the key has no unused number left. */
ccmem_status ccmem_cache_append(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                                uint32_t sequences, uint64_t tokens, const ccmem_cache_rows *k,
                                const ccmem_cache_rows *v);

/* Forgets all tokens from `tokens` on. CCMEM_ERR_RANGE when it has fewer, or when some of those
 * that would be the last have been evicted; else the errors of append: a block that is cut becomes
 * records, on any failure nothing has changed. */
ccmem_status ccmem_cache_crop(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                              uint64_t tokens);

/* Gives back blocks all of whose tokens lie before token `before`, as a sliding window may.
 * CCMEM_ERR_ARGUMENT, _FORK. */
ccmem_status ccmem_cache_evict(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                               uint64_t before);

/* Sequence i of a layer becomes what sequence from[i] was, for i < n: beams that are chosen, or
 * repeated. All layers must get the same n before the next append. CCMEM_ERR_ARGUMENT, _NOMEM,
 * _MEMLOCK, _FORK. */
ccmem_status ccmem_cache_reorder(ccmem_cache *cache, uint32_t layer, const uint32_t *from,
                                 uint32_t n);

/* Sequences that a layer has. 0 when there is no such layer. */
uint32_t ccmem_cache_sequences(const ccmem_cache *cache, uint32_t layer);

/* Opens K (which: 0) or V (1) of `tokens` tokens from token `first` on, of all heads of one
 * sequence, into rows of the layer's type, or, where that is CCMEM_I8, of CCMEM_F32. Errors of
 * ccmem_cache_attend(). CCMEM_ERR_RANGE: evicted, or not there. */
ccmem_status ccmem_cache_read(ccmem_cache *cache, uint32_t layer, uint32_t sequence, int which,
                              uint64_t first, uint64_t tokens, const ccmem_cache_rows *out);

/* One attention. Query head h belongs to head h / (query_heads / heads) of K and V. Row r of
 * `rows` is at position L - rows + r, where L is its sequence's length: with `causal`, it sees the
 * tokens up to its own position (lower right). A row that sees nothing gets zeros. Strides are in
 * elements, and 0 repeats. */
typedef struct ccmem_attention {
    uint32_t layer;
    uint32_t sequence, sequences; /* the first, and how many; the strides count from the first */
    uint32_t query_heads;         /* a multiple of the layer's heads */
    uint64_t rows;                /* of each sequence and query head */
    const void *q;                /* rows of key_size elements, each dense */
    ccmem_dtype q_dtype;          /* not CCMEM_I8; that of `out` as well */
    int64_t q_sequence, q_head, q_row;
    void *out; /* rows of value_size elements, each dense; does not overlap the inputs */
    int64_t out_sequence, out_head, out_row;
    float scale;   /* of the scores; usually 1 / sqrt(key_size) */
    float softcap; /* 0: none; else scores become softcap * tanh(score / softcap), before masks */
    int causal;
    uint64_t window; /* 0: none; else a row sees at most so many tokens, up to its position */
    /* Tokens [from[s], to[s]) of sequence s are seen at most. NULL: all; `from` is for padding on
     * the left, `to` on the right. */
    const uint64_t *from, *to;
    /* Added to the scores, float32, or NULL; -infinity hides a token. The value for sequence s,
     * head h, row r and token t, counted from the sequence's first token, is at s * mask_sequence +
     * h * mask_head + r * mask_row + t. `mask_tokens`: for how many tokens there is a value; no row
     * sees more. */
    const float *mask;
    int64_t mask_sequence, mask_head, mask_row;
    uint64_t mask_tokens;
    /* For each query head a score without a value, which takes its share of the softmax; or NULL.
     */
    const float *sinks;
} ccmem_attention;

/* Computes softmax(scale * q K^T) V. Scores, maxima and sums are float32, whatever the types are.
 * On failure all of `out` is zero. CCMEM_ERR_ARGUMENT, _FORK, _CLOSED, _NOMEM, _BUDGET;
 * _INTEGRITY: a block or a record was changed. */
ccmem_status ccmem_cache_attend(ccmem_cache *cache, const ccmem_attention *what);

/* What one cache has to do with a batch of rows: those from number `first` on. */
typedef struct ccmem_cache_run {
    ccmem_cache *cache;
    uint32_t layer;       /* of its sequence 0 */
    uint64_t past;        /* tokens that this has, */
    uint64_t first, rows; /* and rows of the batch that come behind them */
    ccmem_status status;  /* what has become of it */
} ccmem_cache_run;

/* Appends to sequence 0 of each run's layer its rows of k and v, and computes their attention, as
 * ccmem_cache_append() and ccmem_cache_attend() do: of q and out row r is r * q_row and r * out_row
 * further on, of k and v r * token. `what` has what all have in common; layer, sequence, sequences
 * and rows in it are not looked at. Several threads take a run each, or several a long one. No
 * other thread may append to these caches meanwhile, and no two runs may be of the same sequence.
 *
 * Returns the status of the first run that has failed, else CCMEM_OK. A run that failed may have
 * been appended or not; its rows of `out` are zeros, or what they were where appending failed.
 * CCMEM_ERR_RANGE: the sequence has not `past` tokens, and nothing was appended.
 * ccmem_last_failure() does not tell of any. CCMEM_ERR_ARGUMENT, with nothing done and no status
 * given, if `what` has bounds or a mask. */
ccmem_status ccmem_cache_attend_runs(ccmem_cache_run *runs, uint64_t n, const ccmem_cache_rows *k,
                                     const ccmem_cache_rows *v, const ccmem_attention *what);

typedef struct ccmem_cache_stats {
    uint64_t blocks;           /* ciphertext of so many blocks of a head, */
    uint64_t records;          /* and of so many tokens not yet in blocks; shared ones count once */
    uint64_t ciphertext_bytes; /* of these */
    uint64_t memory_bytes;     /* all memory of the cache and its forks */
    uint64_t sealed;           /* numbers used up to now */
    uint64_t opened;           /* blocks and records opened */
    uint64_t integrity_failures;
} ccmem_cache_stats;

/* What a cache and its forks have in common. CCMEM_ERR_FORK. */
ccmem_status ccmem_cache_get_stats(ccmem_cache *cache, ccmem_cache_stats *out);

/* Where a block or record lies, for tests that damage it, and the number it was sealed under. */
typedef struct ccmem_cache_place {
    uint8_t *data; /* ciphertext */
    uint64_t bytes;
    uint8_t *tag; /* 16 bytes */
    uint64_t number;
    uint64_t first, tokens; /* of the sequence */
    uint32_t head;          /* of a block; of a record, 0 */
    int which;              /* 0: K, 1: V, 2: a record of both */
} ccmem_cache_place;

/* Fills up to `capacity` places of a sequence in order; *count is how many there are.
 * CCMEM_ERR_ARGUMENT, _FORK. */
ccmem_status ccmem_cache_places(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                                ccmem_cache_place *out, uint64_t capacity, uint64_t *count);

void ccmem_cache_drop(ccmem_cache **cell);
ccmem_cache *ccmem_cache_take(ccmem_cache **cell);

/* ---- search ---------------------------------------------------------------------------------- */

/* Queries of a search at most. */
enum { CCMEM_SEARCH_QUERIES_MAX = 4096 };

/* Rows that are searched: `count` of `dim` elements each, one after the other from byte `offset` of
 * the store `rows` on. Their sums are multiplied by `factors` and `biases` are added, float32 for
 * each row, from byte factor_offset and bias_offset of these stores on; NULL: 1 and 0. Row i has
 * the id ids[i], or first_id + i where `ids` is NULL. It is seen if bit live_first + i of `live` is
 * set, the lowest bit of a byte being the first; NULL: all are. `queries` are the numbers of the
 * nqueries queries that the rows are for, each once; NULL: all. */
typedef struct ccmem_search_part {
    ccmem_store *rows;
    uint64_t offset;
    uint64_t count;
    ccmem_store *factors;
    uint64_t factor_offset;
    ccmem_store *biases;
    uint64_t bias_offset;
    const int64_t *ids;
    int64_t first_id;
    const uint8_t *live;
    uint64_t live_first;
    const uint32_t *queries;
    uint32_t nqueries;
} ccmem_search_part;

/* For each of nqueries queries of `dim` floats, one after the other, the k rows of all parts with
 * the largest score, which is what ccmem_store_linear() gives for the row: scores[q * k + i] and
 * ids[q * k + i], the largest first, of equal ones the smaller id first; -infinity and -1 where
 * there are fewer. A score that is no number is not among them. The ids of rows that are seen
 * differ.
 *
 * Each page is opened once for all queries, a tile at a time, and its scores are compared while
 * they are in the cache: memory is wiped, and grows with nqueries * k, not with the rows. Which
 * scores are among the best decides on branches and addresses.
 *
 * On any failure scores and ids are zeros, and *failed says where it was: three times the number of
 * the part, plus 1 for its factors, 2 for its biases. CCMEM_ERR_ARGUMENT, _RANGE, _FORK, _CLOSED,
 * _NOMEM, _BUDGET; CCMEM_ERR_INTEGRITY as for ccmem_store_read. */
ccmem_status ccmem_search(const ccmem_search_part *parts, uint64_t nparts, ccmem_dtype dtype,
                          uint64_t dim, const float *queries, uint64_t nqueries, uint64_t k,
                          float *scores, int64_t *ids, uint64_t *failed);

/* ---- memory for plaintext that is handed out ------------------------------------------------- */

typedef struct ccmem_plain_stats {
    uint64_t blocks; /* handed out and not yet freed */
    uint64_t in_use; /* bytes of these */
    uint64_t peak;   /* the most bytes ever in use at once */
    uint64_t kept;   /* bytes of wiped blocks kept for reuse */
} ccmem_plain_stats;

/* n zero bytes, 64-byte aligned, in memory that is left out of core dumps and that a forked child
 * finds zeroed. CCMEM_ERR_NOMEM, CCMEM_ERR_BUDGET. */
ccmem_status ccmem_plain_alloc(uint64_t n, uint8_t **out);

/* The same for a caller that must not be interrupted between the call and the line that keeps the
 * block: it is what is returned. NULL: ccmem_plain_refusal() tells why in this thread. */
uint8_t *ccmem_plain_take(size_t n);
ccmem_status ccmem_plain_refusal(void);

/* Wipes a block and gives it back. NULL is allowed. In a forked child a block of the parent's is
 * left alone. */
void ccmem_plain_free(uint8_t *block);

/* The pool's state in this process. CCMEM_ERR_NOMEM. */
ccmem_status ccmem_plain_get_stats(ccmem_plain_stats *out);

/* ---- owners for an interpreter --------------------------------------------------------------- */

/* An interpreter can be interrupted between a call that makes an object and the line that keeps it.
 * There the variable that the call fills, a cell, is made first, as NULL, with *_drop for its
 * destructor, which frees what is in it. *_take moves the object out: the interpreter calls it and
 * gives the object its own destructor in one step. */
void ccmem_key_drop(ccmem_key **cell);
ccmem_key *ccmem_key_take(ccmem_key **cell);
void ccmem_store_drop(ccmem_store **cell);
ccmem_store *ccmem_store_take(ccmem_store **cell);
void ccmem_arena_drop(ccmem_arena **cell);
ccmem_arena *ccmem_arena_take(ccmem_arena **cell);
void ccmem_file_drop(ccmem_file **cell);
ccmem_file *ccmem_file_take(ccmem_file **cell);
void ccmem_sealer_drop(ccmem_sealer **cell);
ccmem_sealer *ccmem_sealer_take(ccmem_sealer **cell);
void ccmem_samples_drop(ccmem_samples **cell);
ccmem_samples *ccmem_samples_take(ccmem_samples **cell);
void ccmem_region_drop(ccmem_region **cell);
ccmem_region *ccmem_region_take(ccmem_region **cell);

/* ccmem_region_drop() and ccmem_region_free() for an interpreter that keeps the region's store as
 * an argument of the destructor. */
void ccmem_region_drop_before(ccmem_store *store, ccmem_region **cell);
void ccmem_region_free_before(ccmem_store *store, ccmem_region *region);

/* A pinned range. region is NULL: none. */
typedef struct ccmem_pin {
    ccmem_region *region;
    uint64_t offset, n;
} ccmem_pin;

/* ccmem_region_pin(), noted in `pin`, which held none. */
ccmem_status ccmem_pin_take(ccmem_region *region, uint64_t offset, uint64_t n, ccmem_pin *pin);

/* ccmem_region_unpin() of what is noted, if anything is. */
ccmem_status ccmem_pin_release(ccmem_pin *pin);

/* The same for an interpreter that keeps the region as an argument of the destructor. */
void ccmem_pin_drop_before(ccmem_region *region, ccmem_pin *pin);

/* Does nothing: a destructor of `object` that keeps `kept` until then. */
void ccmem_nothing(const void *kept, const void *object);

/* Closes the descriptor in the cell, unless it is -1, which it becomes. */
void ccmem_descriptor_drop(int *cell);

/* A descriptor that is kept for long, and whose number may be another file's once a program
 * has closed all that it did not know, as daemons do; `fd` begins as -1. */
typedef struct ccmem_kept_file {
    int fd;
    uint64_t device, inode;
} ccmem_kept_file;

/* Fills the cell with a duplicate of fd. Returns 0 or the error. */
int ccmem_kept_file_open(ccmem_kept_file *file, int fd);

/* The descriptor; -1 when there is none, or it is another file's now. */
int ccmem_kept_file_number(const ccmem_kept_file *file);

/* Closes it, if it is still that file's. */
void ccmem_kept_file_drop(ccmem_kept_file *file);

/* Has two names, of files or directories, change places in one step that is seen as a whole. 0, or
 * the error: ENOSYS, EINVAL where the system or the file system cannot. */
int ccmem_exchange(const char *one, const char *other);

/* ---- low-level functions, for checking against published vectors ----------------------------- */

/* AES-XTS (IEEE 1619-2018) of one data unit of n >= 16 bytes (any length: ciphertext stealing),
 * in place or from `in` to a non-overlapping `out`. `key` is K1 || K2, key_len 32 or 64; `tweak`
 * the data unit number, little-endian. `encrypt` is 1 or 0. No alignment is required.
 * CCMEM_ERR_ARGUMENT, _EQUAL_HALVES, _TIER. */
ccmem_status ccmem_xts(ccmem_tier tier, int encrypt, const uint8_t *key, size_t key_len,
                       const uint8_t tweak[16], const uint8_t *in, uint8_t *out, size_t n);

/* AEGIS-128L (lanes = 1) or AEGIS-128X2 (lanes = 2) as in RFC 10032 (draft-irtf-cfrg-aegis-aead):
 * encrypts n bytes from `in` to `out` (the same, or no overlap) and writes a tag of tag_len bytes,
 * 16 or 32. `in` and `out` may be NULL when n is 0, and so may `ad` when ad_len is 0.
 * CCMEM_ERR_ARGUMENT, _TIER. */
ccmem_status ccmem_aegis_encrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[16],
                                 const uint8_t nonce[16], const uint8_t *ad, size_t ad_len,
                                 const uint8_t *in, uint8_t *out, size_t n, uint8_t *tag,
                                 size_t tag_len);

/* The reverse. CCMEM_ERR_INTEGRITY when the tag does not match: `out` is zero then. */
ccmem_status ccmem_aegis_decrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[16],
                                 const uint8_t nonce[16], const uint8_t *ad, size_t ad_len,
                                 const uint8_t *in, uint8_t *out, size_t n, const uint8_t *tag,
                                 size_t tag_len);

/* AEGIS-256 (lanes = 1) or AEGIS-256X2 (lanes = 2): likewise, with keys and nonces of 32 bytes. */
ccmem_status ccmem_aegis256_encrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[32],
                                    const uint8_t nonce[32], const uint8_t *ad, size_t ad_len,
                                    const uint8_t *in, uint8_t *out, size_t n, uint8_t *tag,
                                    size_t tag_len);
ccmem_status ccmem_aegis256_decrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[32],
                                    const uint8_t nonce[32], const uint8_t *ad, size_t ad_len,
                                    const uint8_t *in, uint8_t *out, size_t n, const uint8_t *tag,
                                    size_t tag_len);

/* AES-GCM (SP 800-38D) under a key of 16, 24 or 32 bytes, with a nonce of iv_len >= 1 bytes: as
 * above, with a tag of 4, 8 or 12 to 16 bytes, and texts of at most 2^36 - 32 bytes.
 * CCMEM_ERR_ARGUMENT, _TIER. */
ccmem_status ccmem_aes_gcm_encrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   uint8_t *tag, size_t tag_len);

/* The reverse. CCMEM_ERR_INTEGRITY when the tag does not match: `out` is zero then. */
ccmem_status ccmem_aes_gcm_decrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   const uint8_t *tag, size_t tag_len);

/* AES-CMAC (SP 800-38B) of n bytes under a key of 16, 24 or 32 bytes. CCMEM_ERR_ARGUMENT, _TIER. */
ccmem_status ccmem_cmac(ccmem_tier tier, const uint8_t *key, size_t key_len, const uint8_t *msg,
                        size_t n, uint8_t tag[16]);

/* SP 800-108r1 key derivation in counter mode with AES-CMAC: blocks of
 * CMAC(key, [i]_32 || label || 0x00 || context || [8 * out_len]_32), i = 1, 2, ...; key_len 16 or
 * 32. CCMEM_ERR_ARGUMENT, _TIER. */
ccmem_status ccmem_kdf(ccmem_tier tier, const uint8_t *key, size_t key_len, const uint8_t *label,
                       size_t label_len, const uint8_t *context, size_t context_len, uint8_t *out,
                       size_t out_len);

/* AES key wrap (KW of SP 800-38F, RFC 3394) under a key of 16, 24 or 32 bytes, from `in` to `out`,
 * which do not overlap. `wrap` is 1: n bytes, a multiple of 8 from 16 to 2^16, become n + 8. 0: n
 * bytes become n - 8; CCMEM_ERR_INTEGRITY when they were not wrapped under this key: `out` is zero
 * then. CCMEM_ERR_ARGUMENT, _TIER. */
ccmem_status ccmem_aes_kw(ccmem_tier tier, int wrap, const uint8_t *kek, size_t kek_len,
                          const uint8_t *in, size_t n, uint8_t *out);

/* SM4 (GB/T 32907-2016) of nblocks blocks of 16 bytes by themselves, in place or from `in` to a
 * non-overlapping `out`. `encrypt` is 1 or 0. CCMEM_ERR_ARGUMENT, _TIER. */
ccmem_status ccmem_sm4(ccmem_tier tier, int encrypt, const uint8_t key[16], const uint8_t *in,
                       uint8_t *out, size_t nblocks);

/* SM4-XTS of one data unit, likewise as ccmem_xts(); key is K1 || K2. `ieee` is 0 for GB/T
 * 17964-2021, as pages are sealed, and 1 for tweaks doubled as in IEEE 1619. CCMEM_ERR_ARGUMENT,
 * _EQUAL_HALVES, _TIER. */
ccmem_status ccmem_sm4_xts(ccmem_tier tier, int encrypt, int ieee, const uint8_t key[32],
                           const uint8_t tweak[16], const uint8_t *in, uint8_t *out, size_t n);

/* SM4-GCM (RFC 8998) likewise as ccmem_aes_gcm_encrypt() and its inverse; key_len is 16. */
ccmem_status ccmem_sm4_gcm_encrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   uint8_t *tag, size_t tag_len);
ccmem_status ccmem_sm4_gcm_decrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   const uint8_t *tag, size_t tag_len);

/* SM3 (GB/T 32905-2016) of n bytes. CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_sm3(const uint8_t *msg, size_t n, uint8_t digest[32]);

/* HMAC over SM3 under a key of 1 to 64 bytes. CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_hmac_sm3(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t n,
                            uint8_t tag[32]);

/* The key derivation of ccmem_kdf() with HMAC over SM3 in the place of AES-CMAC. The key has 1 to
 * 64 bytes. CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_kdf_sm3(const uint8_t *key, size_t key_len, const uint8_t *label,
                           size_t label_len, const uint8_t *context, size_t context_len,
                           uint8_t *out, size_t out_len);

/* 1 when the n bytes at a and b are equal, else 0, in time that depends on n alone. */
int ccmem_equal(const void *a, const void *b, size_t n);

/* ---- measuring: timed loops that must not cross the interpreter ------------------------------ */

/* Bytes per second that the AES unit alone could encrypt with `tier`'s instructions and the given
 * number of AES rounds a block (10 or 14; 4 for AEGIS-128): `repeats` passes over 8 independent
 * registers, nothing else.
 * 0 for the portable tier, which has no such unit. */
double ccmem_measure_ceiling(ccmem_tier tier, unsigned rounds, uint64_t repeats);

/* What ccmem_measure_pages does to each page. */
typedef enum ccmem_measure_op { CCMEM_MEASURE_SEAL = 0, CCMEM_MEASURE_OPEN } ccmem_measure_op;

/* Seconds for `repeats` calls that seal or open `npages` contiguous pages from `in` to `out` (the
 * same address: in place), one kernel call for all pages, with a random key. To be opened, pages of
 * an authenticated cipher are sealed in `in` before the clock starts, and must not be opened in
 * place (CCMEM_ERR_ARGUMENT). */
ccmem_status ccmem_measure_pages(ccmem_tier tier, ccmem_cipher cipher, ccmem_measure_op op,
                                 uint8_t *in, uint8_t *out, uint32_t page_size, uint64_t npages,
                                 uint64_t repeats, double *seconds);

/* Seconds for `count` reads of 64 bytes at pseudo-random 64-byte-aligned offsets of the store. With
 * `dependent` each offset depends on the bytes just read (latency), else not (throughput). */
ccmem_status ccmem_measure_random_reads(ccmem_store *store, uint64_t count, int dependent,
                                        double *seconds);

/* The same walk over plain memory of n bytes with a 64-byte copy in place of the read. */
ccmem_status ccmem_measure_random_copies(const uint8_t *memory, uint64_t n, uint64_t count,
                                         int dependent, double *seconds);

/* Seconds for one pass over the store that opens `step` bytes at a time into the same scratch of
 * `step` bytes, which stays in the cache. Errors of ccmem_store_read. */
ccmem_status ccmem_measure_open_to_scratch(ccmem_store *store, uint8_t *scratch, uint64_t step,
                                           double *seconds);

/* Seconds for one pass that reads n bytes, a multiple of 256, with the widest loads that the tier
 * in use has, and does nothing with them. */
double ccmem_measure_plain_read(const uint8_t *memory, uint64_t n);

/* A cache that encrypts nothing, for measuring what encryption costs: what is appended to it lies
 * in memory as it is. Errors of ccmem_cache_new(). */
ccmem_status ccmem_measure_cache_new(uint32_t sequences, ccmem_cache **out);

/* Seconds for one memcpy of n bytes. */
double ccmem_measure_memcpy(void *out, const void *in, uint64_t n);

/* ---- searching memory for samples of a file -------------------------------------------------- */

typedef struct ccmem_scan_hit {
    uint64_t offset; /* of the sample's first byte in the memory searched */
    uint32_t sample; /* its number: samples are numbered from 0 in the order they were taken */
} ccmem_scan_hit;

/* An empty set for up to `capacity` samples (1 to 2^24). On success *out owns it until
 * ccmem_samples_free. CCMEM_ERR_ARGUMENT, _NOMEM, _ENTROPY. */
ccmem_status ccmem_samples_new(uint32_t capacity, ccmem_samples **out);

/* Takes the 16 bytes at each data + offsets[i], all within n bytes. taken[i] becomes 1, or 0 for
 * one that is refused: fewer than 8 different bytes or fewer than 4 in 8 neighbouring ones, numbers
 * of 1, 2 or 4 bytes at equal steps, equal to one of the set (which then counts as repeated), too
 * many alike, or no room. Not to be called while another thread uses the set. On CCMEM_ERR_RANGE
 * nothing has changed. */
ccmem_status ccmem_samples_add(ccmem_samples *samples, const uint8_t *data, uint64_t n,
                               const uint64_t *offsets, uint32_t count, uint8_t *taken);

/* How many were taken, the repeated ones included. */
uint32_t ccmem_samples_count(const ccmem_samples *samples);

/* 1 when the sample can be found; 0 when it was repeated, or is no sample of the set. */
int ccmem_samples_usable(const ccmem_samples *samples, uint32_t sample);

/* Finds every usable sample that lies within n bytes of memory, at any offset. `from` is 0, and
 * after a call that filled hits (`capacity` of them, at least 8) the *next of that call; *next is n
 * when nothing is left. CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_scan(const ccmem_samples *samples, const uint8_t *data, uint64_t n,
                        uint64_t from, ccmem_scan_hit *hits, uint32_t capacity, uint32_t *found,
                        uint64_t *next);

/* Writes each of `count` numbers of `wide` bytes as one of `narrow` bytes, in the machine's byte
 * order: 8 to 4, 4 to 2, 4 to 1 or 2 to 1. Those that do not fit become bytes 0xA5. `upper` (4 to 2
 * alone): the upper half, where the lower one is zero. out does not overlap data.
 * CCMEM_ERR_ARGUMENT. */
ccmem_status ccmem_narrow(const uint8_t *data, uint64_t count, uint32_t wide, uint32_t narrow,
                          int upper, uint8_t *out);

/* NULL is allowed. */
void ccmem_samples_free(ccmem_samples *samples);

#endif
