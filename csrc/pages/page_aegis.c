/* SPDX-License-Identifier: Apache-2.0
 * Pages under AEGIS-128X2 and AEGIS-256X2: a page is one message with a 16-byte tag and no
 * associated data. */
#include "pages/page.h"

#include <string.h>

#include "crypto/aegis/aegis.h"
#include "memory/secret.h"
#include "pages/page_whole.h"

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
                             .modify = page_modify_whole,
                             .fused_step = fused_step,
                             .fused = open_fused};
