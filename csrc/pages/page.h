/* SPDX-License-Identifier: Apache-2.0
 * Seals and opens pages: (page number, version) becomes a tweak or a nonce, and the one tier in use
 * encrypts; an authenticated cipher also makes and checks a tag. Knows neither where pages and tags
 * are stored nor who may change them when. */
#ifndef CCMEM_PAGE_H
#define CCMEM_PAGE_H

#include "pages/key.h"
#include "pages/tweak_cache.h"
#include "tiers/tiers.h"

enum {
    PAGE_BATCH =
        64, /* pages per call at most: their tweaks fit in 1 KiB, a mask of them in a word */
    PAGE_TAG = 16
};

/* Flags: PAGE_STREAM for a destination far larger than the caches; PAGE_LAST when no memory that
 * will be wanted follows the source within PAGE_AHEAD bytes; or 0. */
enum { PAGE_STREAM = 1u, PAGE_LAST = 2u, PAGE_AHEAD = 12 << 10 };

/* What became of a page that was opened in part. */
typedef enum page_result {
    PAGE_GOOD,
    PAGE_HIT,  /* good, and its tweak was in the cache */
    PAGE_MISS, /* good, and its tweak was computed */
    PAGE_BAD   /* does not match its tag: nothing was handed out */
} page_result;

typedef struct page_context page_context;
typedef uint8_t page_tag[PAGE_TAG];

/* One cipher suite. Versions are never 0 here, dst and src are the same or do not overlap, and
 * `tag` is NULL for a cipher without tags. */
typedef struct page_ops {
    /* Encrypts n <= PAGE_BATCH consecutive pages, the first with number `page`, each under its own
     * version, and writes their tags. */
    void (*seal)(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                 const uint64_t *version, page_tag *tag, size_t n, unsigned flags);
    /* Decrypts likewise. Bit i of the result is set when page i does not match its tag; its part of
     * dst is zero then. */
    uint64_t (*open)(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     const uint64_t *version, const page_tag *tag, size_t n, unsigned flags);
    /* Decrypts one page of a row of pages that lie apart; see open_next() in crypto/aegis/aegis.h.
     * The caller overwrites the stack after the last one: burn_stack(). NULL for ciphers without a
     * tag. 1, or 0 when it does not match its tag; dst is zero then. */
    int (*open_next)(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     uint64_t version, const page_tag *tag, const uint8_t *near,
                     const uint8_t *far);
    /* Decrypts n bytes from `offset` of one page, whose ciphertext starts at src. With a tag, the
     * whole page is verified (n may be 0); on PAGE_BAD the n bytes are zero. */
    page_result (*open_part)(const page_context *ctx, uint8_t *dst, const uint8_t *src,
                             uint64_t page, uint64_t version, const uint8_t *tag, uint32_t offset,
                             uint32_t n, unsigned flags);
    /* Replaces `count` runs, at least 1, of n bytes each in the page whose ciphertext lies at ct,
     * moving it once, from version `from` (0: all zeros, ct is not read) to version `to`. Run i
     * comes from data + i * n and goes to offset offsets[i] modulo the page's size; all lie inside
     * the page, and a later one wins. PAGE_BAD: the page does not match its tag, and nothing has
     * changed. Plaintext exists in scratch that is wiped: 4 KiB at a time, with a tag a whole page.
     */
    page_result (*modify)(const page_context *ctx, uint8_t *ct, const uint8_t *data, uint64_t page,
                          uint64_t from, uint64_t to, uint8_t *tag, const uint64_t *offsets,
                          size_t count, uint32_t n);
    /* The least step (crypto/fused.h) of what follows; 0 when the kernels have no such thing. */
    size_t (*fused_step)(const page_context *ctx);
    /* Opens n <= PAGE_BATCH pages into registers only and adds their products. Returns how many of
     * them match their tags, up to the first that does not: if not all, the sums mean nothing. */
    size_t (*fused)(const page_context *ctx, const uint8_t *src, uint64_t page,
                    const uint64_t *version, const page_tag *tag, size_t n, ccmem_dtype dtype,
                    const fused_rows *rows);
} page_ops;

struct page_context {
    const page_ops *ops;
    const void *kernels; /* the suite's table of the tier */
    const void *key;     /* expanded, in secret memory */
    tweak_cache cache;   /* of ciphers with a tweak */
    uint32_t size;       /* bytes of a page */
};

extern const page_ops page_xts, page_aegis, page_gcm;

enum { PAGE_SUBKEY_MAX = 64 }; /* bytes, of every suite */

/* Numbers of pages are below this, far above what a machine has: GCM has 48 bits of a nonce for
 * them. */
static const uint64_t PAGE_NUMBERS = (uint64_t)1 << 48;

/* One cipher suite. */
typedef struct page_suite {
    ccmem_suite is;
    size_t key_size; /* bytes of the expanded key */
    /* Makes it; NULL: it is the subkey itself. CCMEM_ERR_EQUAL_HALVES. */
    ccmem_status (*expand)(void *key, const uint8_t *subkey, size_t n);
    /* Its table among a tier's. */
    const void *(*kernels)(const tier_kernels *tier);
    const page_ops *pages; /* what is done with these */
    key_derivation derive; /* of its subkeys from root keys */
    int tweaks;            /* 1: these use the tweak cache */
    uint64_t versions;     /* that a page may have under one key; 0: any number below 2^63 */
} page_suite;

/* NULL outside the enumeration. */
const page_suite *page_suite_of(ccmem_cipher cipher);

/* Expands `subkey` into `key` (64-byte aligned, suite's key_size) and makes *ctx ready to seal and
 * open pages of `size` bytes with the kernels of a usable tier, without a tweak cache.
 * CCMEM_ERR_EQUAL_HALVES. */
ccmem_status page_init(page_context *ctx, ccmem_cipher cipher, ccmem_tier tier, uint32_t size,
                       void *key, const uint8_t *subkey);

/* The same without a key, which a copy of the context is given when it is used: the subkey itself,
 * for a suite that does not expand it. */
void page_init_keyless(page_context *ctx, ccmem_cipher cipher, ccmem_tier tier, uint32_t size);

/* The bytes of one run that lie in [at, at + span) of the page, copied to scratch, which holds
 * them: run bytes `n` at `offset`. For the modify functions. */
void page_place(uint8_t *scratch, uint32_t at, uint32_t span, const uint8_t *data,
                const uint64_t *offsets, size_t count, uint32_t mask, uint32_t n);

#endif
