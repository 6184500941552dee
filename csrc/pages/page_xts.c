/* SPDX-License-Identifier: Apache-2.0
 * Pages under AES-XTS: any 16 bytes of a page can be opened alone, and nothing is noticed. */
#include "pages/page.h"

#include <string.h>

#include "crypto/xts/xts.h"
#include "memory/secret.h"

/* Keeps what is seldom needed out of functions that are often called: there it would cost registers
 * to be saved and a stack to be aligned. */
#define NOINLINE __attribute__((noinline))

static inline const xts_ops *kernels(const page_context *ctx) { return ctx->kernels; }

static inline const xts_key *key_of(const page_context *ctx) { return ctx->key; }

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
    kernels(ctx)->tweaks(key_of(ctx), t0, n);
}

static inline unsigned stream(unsigned flags) { return flags & PAGE_STREAM ? XTS_STREAM : 0; }

static void seal(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                 const uint64_t *version, page_tag *tag, size_t n, unsigned flags) {
    (void)tag;
    _Alignas(64) uint8_t t0[PAGE_BATCH][16];
    make_tweaks(ctx, t0, page, version, n);
    kernels(ctx)->seal_pages(key_of(ctx), dst, src, n, ctx->size, (const uint8_t (*)[16])t0,
                             stream(flags));
    ccmem_wipe(t0, n * sizeof t0[0]);
}

static uint64_t open(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     const uint64_t *version, const page_tag *tag, size_t n, unsigned flags) {
    (void)tag;
    _Alignas(64) uint8_t t0[PAGE_BATCH][16];
    make_tweaks(ctx, t0, page, version, n);
    kernels(ctx)->open_pages(key_of(ctx), dst, src, n, ctx->size, (const uint8_t (*)[16])t0,
                             stream(flags));
    ccmem_wipe(t0, n * sizeof t0[0]);
    return 0;
}

/* E_K2 of one page's tweak, made where the caller wipes it: in a register it would be saved on the
 * stack by the next call. */
NOINLINE static void one_tweak(const page_context *ctx, xts_tweak *t0, uint64_t page,
                               uint64_t version) {
    make_tweaks(ctx, (uint8_t (*)[16])t0, page, &version, 1);
}

/* The same from the cache or into it; 1 when it was there. */
static inline int cached_tweak(const page_context *ctx, xts_tweak *t0, uint64_t page,
                               uint64_t version) {
    if (__builtin_expect(tweak_cache_get(&ctx->cache, page, version, t0), 1))
        return 1;
    one_tweak(ctx, t0, page, version);
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
    kernels(ctx)->open_blocks(key_of(ctx), scratch, src + (size_t)first * AES_BLOCK, blocks, first,
                              t0);
    copy_secret(dst, scratch + skip, n);
    ccmem_wipe(scratch, (size_t)blocks * AES_BLOCK);
}

/* A part whose tweak is not in the cache, or which does not start and end with a block. */
NOINLINE static page_result open_slowly(const page_context *ctx, uint8_t *dst, const uint8_t *src,
                                        uint64_t page, uint64_t version, uint32_t offset,
                                        uint32_t n) {
    xts_tweak t[1];
    int hit = cached_tweak(ctx, t, page, version);
    uint32_t head = (0 - offset) % AES_BLOCK, tail = (offset + n) % AES_BLOCK;

    if ((head | tail) && n <= (SCRATCH_BLOCKS - 1) * AES_BLOCK) {
        open_through_scratch(ctx, dst, src, t[0], offset, n);
    } else {
        if (head)
            open_through_scratch(ctx, dst, src, t[0], offset, head);
        kernels(ctx)->open_blocks(key_of(ctx), dst + head, src + offset + head,
                                  (n - head - tail) / AES_BLOCK, (offset + head) / AES_BLOCK, t[0]);
        if (tail)
            open_through_scratch(ctx, dst + n - tail, src, t[0], offset + n - tail, tail);
    }
    ccmem_wipe(t, sizeof t);
    return hit ? PAGE_HIT : PAGE_MISS;
}

/* Nothing here is needed after the kernel's call, so that no register has to be saved: overlapping
 * small reads are bounded by how many stores the processor can have under way. */
static page_result open_part(const page_context *ctx, uint8_t *dst, const uint8_t *src,
                             uint64_t page, uint64_t version, const uint8_t *tag, uint32_t offset,
                             uint32_t n, unsigned flags) {
    xts_tweak t0;
    (void)tag;
    (void)flags;
    if (__builtin_expect((offset | n) % AES_BLOCK != 0, 0) ||
        __builtin_expect(!tweak_cache_get(&ctx->cache, page, version, &t0), 0))
        return open_slowly(ctx, dst, src, page, version, offset, n);
    kernels(ctx)->open_blocks(key_of(ctx), dst, src + offset, n / AES_BLOCK, offset / AES_BLOCK,
                              t0);
    return PAGE_HIT;
}

static page_result modify(const page_context *ctx, uint8_t *ct, const uint8_t *data, uint64_t page,
                          uint64_t from, uint64_t to, uint8_t *tag, const uint64_t *offsets,
                          size_t count, uint32_t n) {
    enum { CHUNK = CCMEM_PAGE_SIZE_MIN };
    _Alignas(64) uint8_t scratch[CHUNK];
    xts_tweak t[2] = {{0}, {0}};
    const uint32_t mask = ctx->size - 1;
    (void)tag;

    one_tweak(ctx, &t[1], page, to);
    if (from)
        cached_tweak(ctx, &t[0], page, from);
    tweak_cache_put(&ctx->cache, page, to, t[1]);
    for (uint32_t at = 0; at < ctx->size; at += CHUNK) {
        uint32_t first = (uint32_t)offsets[0] & mask;
        int covered = first <= at && first + n >= at + CHUNK;
        if (from && !covered)
            kernels(ctx)->open_blocks(key_of(ctx), scratch, ct + at, CHUNK / AES_BLOCK,
                                      at / AES_BLOCK, t[0]);
        else if (!covered)
            memset(scratch, 0, CHUNK);
        page_place(scratch, at, CHUNK, data, offsets, count, mask, n);
        kernels(ctx)->seal_blocks(key_of(ctx), ct + at, scratch, CHUNK / AES_BLOCK, at / AES_BLOCK,
                                  t[1]);
    }
    ccmem_wipe(scratch, sizeof scratch);
    ccmem_wipe(t, sizeof t);
    return PAGE_MISS;
}

static size_t fused_step(const page_context *ctx) {
    return kernels(ctx)->fused ? XTS_FUSED_STEP : 0;
}

static size_t open_fused(const page_context *ctx, const uint8_t *src, uint64_t page,
                         const uint64_t *version, const page_tag *tag, size_t n, ccmem_dtype dtype,
                         const fused_rows *d) {
    (void)tag;
    _Alignas(64) uint8_t t0[PAGE_BATCH][16];
    make_tweaks(ctx, t0, page, version, n);
    kernels(ctx)->fused[dtype](key_of(ctx), src, ctx->size, (const uint8_t (*)[16])t0, d);
    ccmem_wipe(t0, n * sizeof t0[0]);
    return n;
}

const page_ops page_xts = {.seal = seal,
                           .open = open,
                           .open_part = open_part,
                           .modify = modify,
                           .fused_step = fused_step,
                           .fused = open_fused};
