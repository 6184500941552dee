/* SPDX-License-Identifier: Apache-2.0
 * Seals and opens pages: (page number, version) becomes a tweak, and the one tier in use encrypts.
 * Knows neither where pages are stored nor who may change them when. */
#ifndef CCMEM_PAGE_H
#define CCMEM_PAGE_H

#include "tweak_cache.h"
#include "xts.h"

enum {
    PAGE_BATCH = 64 /* pages per call at most: their tweaks fit in 1 KiB */
};

typedef struct page_context {
    const xts_ops *ops;
    const xts_key *key; /* in secret memory */
    tweak_cache cache;
    uint32_t size; /* bytes of a page */
} page_context;

/* Encrypts n <= PAGE_BATCH consecutive pages, the first with number `page`, each under its own
 * version (never 0), from src to dst (the same, or no overlap). flags: XTS_STREAM or 0. */
void page_seal(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
               const uint64_t *version, size_t n, unsigned flags);

/* Decrypts likewise. */
void page_open(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
               const uint64_t *version, size_t n, unsigned flags);

/* Decrypts n bytes from `offset` of one page, whose ciphertext starts at src. Returns 1 when the
 * tweak was in the cache, else 0. */
int page_open_part(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                   uint64_t version, uint32_t offset, uint32_t n);

/* Replaces `count` runs, at least 1, of n bytes each in the page whose ciphertext lies at ct, moving
 * it once, from version `from` (0: all zeros, ct is not read) to version `to`. Run i comes from
 * data + i * n and goes to offset offsets[i] modulo the page's size; all lie inside the page, and a
 * later one wins. Plaintext exists 4 KiB at a time, in scratch that is wiped. */
void page_modify(const page_context *ctx, uint8_t *ct, const uint8_t *data, uint64_t page,
                 uint64_t from, uint64_t to, const uint64_t *offsets, size_t count, uint32_t n);

#endif
