/* SPDX-License-Identifier: Apache-2.0
 * Pages under AEGIS-128X2: a page is one message with a 16-byte tag and no associated data. */
#include "pages/page.h"

#include <string.h>

#include "crypto/aegis/aegis.h"
#include "memory/secret.h"

_Static_assert((int)PAGE_BATCH <= (int)AEGIS_BATCH, "a batch is one call of the kernel");
_Static_assert((int)PAGE_TAG == (int)AEGIS_TAG_SIZE, "tags have the cipher's size");

static inline const aegis_ops *kernels(const page_context *ctx) { return ctx->kernels; }

static inline unsigned kernel_flags(unsigned flags) {
    return (flags & PAGE_STREAM ? AEGIS_STREAM : 0) | (flags & PAGE_LAST ? AEGIS_LAST : 0);
}

/* After a kernel: sixteen registers do not hold all that AEGIS works with. */
static inline void clean_up(const page_context *ctx) {
    if (kernels(ctx)->spills)
        burn_stack();
}

/* page || version, each 8 bytes, little-endian: it never repeats under one key, since page numbers
 * tell positions apart and versions the writes to one position. */
static inline void make_nonce(uint8_t out[16], uint64_t page, uint64_t version) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    page = __builtin_bswap64(page);
    version = __builtin_bswap64(version);
#endif
    /* One store: it is loaded as one vector at once. */
    typedef uint64_t pair __attribute__((vector_size(16)));
    pair both = {page, version};
    memcpy(out, &both, 16);
}

static void make_nonces(uint8_t (*out)[16], uint64_t page, const uint64_t *version, size_t n) {
    for (size_t i = 0; i < n; i++)
        make_nonce(out[i], page + i, version[i]);
}

static void seal(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                 const uint64_t *version, page_tag *tag, size_t n, unsigned flags) {
    uint8_t nonce[PAGE_BATCH][16];
    make_nonces(nonce, page, version, n);
    kernels(ctx)->seal_pages(ctx->key, dst, src, n, ctx->size, (const uint8_t (*)[16])nonce, tag,
                             kernel_flags(flags));
    clean_up(ctx);
}

static uint64_t open(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     const uint64_t *version, const page_tag *tag, size_t n, unsigned flags) {
    uint8_t nonce[PAGE_BATCH][16];
    make_nonces(nonce, page, version, n);
    uint64_t bad = kernels(ctx)->open_pages(ctx->key, dst, src, n, ctx->size,
                                            (const uint8_t (*)[16])nonce, tag, kernel_flags(flags));
    clean_up(ctx);
    return bad;
}

static int open_next(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     uint64_t version, const page_tag *tag, const uint8_t *near,
                     const uint8_t *far) {
    uint8_t nonce[16];
    make_nonce(nonce, page, version);
    return kernels(ctx)->open_next(ctx->key, dst, src, ctx->size, nonce, *tag, near, far);
}

static page_result open_part(const page_context *ctx, uint8_t *dst, const uint8_t *src,
                             uint64_t page, uint64_t version, const uint8_t *tag, uint32_t offset,
                             uint32_t n, unsigned flags) {
    uint8_t nonce[16];
    make_nonce(nonce, page, version);
    int good = kernels(ctx)->open_part(ctx->key, dst, src, ctx->size, nonce, tag, offset, n,
                                       kernel_flags(flags));
    clean_up(ctx);
    return good ? PAGE_GOOD : PAGE_BAD;
}

/* The page as a whole goes through scratch: its ciphertext must not be overwritten before the last
 * byte of it is verified. */
static page_result modify_in(uint8_t *scratch, const page_context *ctx, uint8_t *ct,
                             const uint8_t *data, uint64_t page, uint64_t from, uint64_t to,
                             uint8_t *tag, const uint64_t *offsets, size_t count, uint32_t n) {
    page_result result = PAGE_GOOD;

    if (!from)
        memset(scratch, 0, ctx->size);
    else if (open(ctx, scratch, ct, page, &from, (const page_tag *)tag, 1, 0))
        result = PAGE_BAD;
    if (result == PAGE_GOOD) {
        page_place(scratch, 0, ctx->size, data, offsets, count, ctx->size - 1, n);
        seal(ctx, ct, scratch, page, &to, (page_tag *)tag, 1, PAGE_LAST);
    }
    ccmem_wipe(scratch, ctx->size);
    return result;
}

/* A frame of its own for large pages: threads may have small stacks, and a frame that is larger
 * than what is left could miss the guard page. */
static __attribute__((noinline)) page_result modify_large(const page_context *ctx, uint8_t *ct,
                                                          const uint8_t *data, uint64_t page,
                                                          uint64_t from, uint64_t to, uint8_t *tag,
                                                          const uint64_t *offsets, size_t count,
                                                          uint32_t n) {
    _Alignas(64) uint8_t scratch[CCMEM_PAGE_SIZE_MAX];
    return modify_in(scratch, ctx, ct, data, page, from, to, tag, offsets, count, n);
}

static page_result modify(const page_context *ctx, uint8_t *ct, const uint8_t *data, uint64_t page,
                          uint64_t from, uint64_t to, uint8_t *tag, const uint64_t *offsets,
                          size_t count, uint32_t n) {
    enum { USUAL = 4 * CCMEM_PAGE_SIZE_MIN };
    _Alignas(64) uint8_t scratch[USUAL];
    if (ctx->size > USUAL)
        return modify_large(ctx, ct, data, page, from, to, tag, offsets, count, n);
    return modify_in(scratch, ctx, ct, data, page, from, to, tag, offsets, count, n);
}

static size_t fused_step(const page_context *ctx) {
    return kernels(ctx)->fused ? AEGIS_FUSED_STEP : 0;
}

static size_t open_fused(const page_context *ctx, const uint8_t *src, uint64_t page,
                         const uint64_t *version, const page_tag *tag, size_t n, ccmem_dtype dtype,
                         const fused_rows *d) {
    uint8_t nonce[PAGE_BATCH][16];
    make_nonces(nonce, page, version, n);
    size_t good = kernels(ctx)->fused[dtype](ctx->key, src, n, ctx->size,
                                             (const uint8_t (*)[16])nonce, tag, d);
    burn_stack(); /* with the sums, the state does not always fit into the registers */
    return good;
}

const page_ops page_aegis = {.seal = seal,
                             .open = open,
                             .open_next = open_next,
                             .open_part = open_part,
                             .modify = modify,
                             .fused_step = fused_step,
                             .fused = open_fused};
