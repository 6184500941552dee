/* SPDX-License-Identifier: Apache-2.0 */
#include "page.h"

#include <string.h>

#include "secret.h"

/* The tweak is the 128-bit number page + version * 2^64, little-endian, so that it never repeats
 * under one key: page numbers tell positions apart, versions the writes to one position. out is
 * 16-byte aligned: stored as one vector, which the cipher can load again without a wait. */
static inline void make_tweak(uint8_t out[16], uint64_t page, uint64_t version) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    page = __builtin_bswap64(page);
    version = __builtin_bswap64(version);
#endif
    *(xts_tweak *)out = (xts_tweak){page, version};
}

static void make_tweaks(const page_context *ctx, uint8_t (*t0)[16], uint64_t page,
                        const uint64_t *version, size_t n) {
    for (size_t i = 0; i < n; i++)
        make_tweak(t0[i], page + i, version[i]);
    ctx->ops->tweaks(ctx->key, t0, n);
}

void page_seal(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
               const uint64_t *version, size_t n, unsigned flags) {
    _Alignas(64) uint8_t t0[PAGE_BATCH][16];
    make_tweaks(ctx, t0, page, version, n);
    ctx->ops->seal_pages(ctx->key, dst, src, n, ctx->size, (const uint8_t(*)[16])t0, flags);
    ccmem_wipe(t0, n * sizeof t0[0]);
}

void page_open(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
               const uint64_t *version, size_t n, unsigned flags) {
    _Alignas(64) uint8_t t0[PAGE_BATCH][16];
    make_tweaks(ctx, t0, page, version, n);
    ctx->ops->open_pages(ctx->key, dst, src, n, ctx->size, (const uint8_t(*)[16])t0, flags);
    ccmem_wipe(t0, n * sizeof t0[0]);
}

/* E_K2 of one page's tweak. */
static inline xts_tweak one_tweak(const page_context *ctx, uint64_t page, uint64_t version) {
    _Alignas(16) uint8_t t0[1][16];
    make_tweaks(ctx, t0, page, &version, 1);
    xts_tweak t = xts_tweak_load(t0[0]);
    ccmem_wipe(t0, sizeof t0);
    return t;
}

/* The same from the cache or into it; 1 when it was there. */
static inline int cached_tweak(const page_context *ctx, xts_tweak *t0, uint64_t page,
                               uint64_t version) {
    if (__builtin_expect(tweak_cache_get(&ctx->cache, page, version, t0), 1))
        return 1;
    *t0 = one_tweak(ctx, page, version);
    tweak_cache_put(&ctx->cache, page, version, *t0);
    return 0;
}

/* Bytes that do not fill their blocks: whole blocks go through scratch, at most SCRATCH_BLOCKS. */
enum { SCRATCH_BLOCKS = 8 };

static void open_through_scratch(const page_context *ctx, uint8_t *dst, const uint8_t *src,
                                 xts_tweak t0, uint32_t offset, uint32_t n) {
    _Alignas(64) uint8_t scratch[SCRATCH_BLOCKS * AES_BLOCK];
    uint32_t first = offset / AES_BLOCK, skip = offset % AES_BLOCK;
    uint32_t blocks = (skip + n + AES_BLOCK - 1) / AES_BLOCK;
    ctx->ops->open_blocks(ctx->key, scratch, src + (size_t)first * AES_BLOCK, blocks, first, t0);
    copy_secret(dst, scratch + skip, n);
    ccmem_wipe(scratch, (size_t)blocks * AES_BLOCK);
}

int page_open_part(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                   uint64_t version, uint32_t offset, uint32_t n) {
    xts_tweak t0;
    int hit = cached_tweak(ctx, &t0, page, version);

    if (__builtin_expect((offset | n) % AES_BLOCK == 0, 1)) {
        ctx->ops->open_blocks(ctx->key, dst, src + offset, n / AES_BLOCK, offset / AES_BLOCK, t0);
    } else if (n <= (SCRATCH_BLOCKS - 1) * AES_BLOCK) {
        open_through_scratch(ctx, dst, src, t0, offset, n);
    } else {
        uint32_t head = (0 - offset) % AES_BLOCK, tail = (offset + n) % AES_BLOCK;
        xts_tweak t[1] = {t0};
        if (head)
            open_through_scratch(ctx, dst, src, t[0], offset, head);
        ctx->ops->open_blocks(ctx->key, dst + head, src + offset + head,
                              (n - head - tail) / AES_BLOCK, (offset + head) / AES_BLOCK, t[0]);
        if (tail)
            open_through_scratch(ctx, dst + n - tail, src, t[0], offset + n - tail, tail);
        ccmem_wipe(t, sizeof t);
    }
    return hit;
}

/* n bytes for `offset` of a page, as far as they lie in the 4 KiB from `at` on that scratch holds. */
static inline void copy_run(uint8_t *scratch, uint32_t at, const uint8_t *run, uint32_t offset,
                            uint32_t n) {
    enum { CHUNK = CCMEM_PAGE_SIZE_MIN };
    uint32_t end = offset + n;
    uint32_t lo = offset > at ? offset - at : 0;
    uint32_t hi = end < at + CHUNK ? (end > at ? end - at : 0) : CHUNK;
    if (lo < hi)
        copy_secret(scratch + lo, run + (at + lo - offset), hi - lo);
}

/* Many runs of n bytes, a constant that one move copies: a general copy takes far longer. */
static inline __attribute__((always_inline)) void copy_items(uint8_t *scratch, uint32_t at,
                                                             const uint8_t *items,
                                                             const uint64_t *offsets, size_t count,
                                                             uint32_t mask, uint32_t n) {
    for (size_t i = 0; i < count; i++) {
        uint32_t offset = (uint32_t)offsets[i] & mask;
        if (offset - at <= CCMEM_PAGE_SIZE_MIN - n) /* wraps, and fails, below `at` */
            memcpy(scratch + (offset - at), items + i * n, n);
        else
            copy_run(scratch, at, items + i * n, offset, n);
    }
}

void page_modify(const page_context *ctx, uint8_t *ct, const uint8_t *data, uint64_t page,
                 uint64_t from, uint64_t to, const uint64_t *offsets, size_t count, uint32_t n) {
    enum { CHUNK = CCMEM_PAGE_SIZE_MIN };
    _Alignas(64) uint8_t scratch[CHUNK];
    xts_tweak t[2] = {{0}, one_tweak(ctx, page, to)};
    const uint32_t mask = ctx->size - 1;

    if (from)
        cached_tweak(ctx, &t[0], page, from);
    tweak_cache_put(&ctx->cache, page, to, t[1]);
    for (uint32_t at = 0; at < ctx->size; at += CHUNK) {
        uint32_t first = (uint32_t)offsets[0] & mask;
        int covered = first <= at && first + n >= at + CHUNK;
        if (from && !covered)
            ctx->ops->open_blocks(ctx->key, scratch, ct + at, CHUNK / AES_BLOCK, at / AES_BLOCK,
                                  t[0]);
        else if (!covered)
            memset(scratch, 0, CHUNK);
        switch (n) {
        case 1: copy_items(scratch, at, data, offsets, count, mask, 1); break;
        case 2: copy_items(scratch, at, data, offsets, count, mask, 2); break;
        case 4: copy_items(scratch, at, data, offsets, count, mask, 4); break;
        case 8: copy_items(scratch, at, data, offsets, count, mask, 8); break;
        default:
            for (size_t i = 0; i < count; i++)
                copy_run(scratch, at, data + i * n, (uint32_t)offsets[i] & mask, n);
        }
        ctx->ops->seal_blocks(ctx->key, ct + at, scratch, CHUNK / AES_BLOCK, at / AES_BLOCK, t[1]);
    }
    ccmem_wipe(scratch, sizeof scratch);
    ccmem_wipe(t, sizeof t);
}
