/* SPDX-License-Identifier: Apache-2.0
 * Changes pages of the suites that have a tag. The page as a whole goes through scratch: its
 * ciphertext must not be overwritten before the last byte of it is verified. */
#include "pages/page_whole.h"

#include <string.h>

#include "memory/secret.h"

static page_result modify_in(uint8_t *scratch, const page_context *ctx, uint8_t *ct,
                             const uint8_t *data, uint64_t page, uint64_t from, uint64_t to,
                             uint8_t *tag, const uint64_t *offsets, size_t count, uint32_t n) {
    page_result result = PAGE_GOOD;

    if (!from)
        memset(scratch, 0, ctx->size);
    else if (ctx->ops->open(ctx, scratch, ct, page, &from, (const page_tag *)tag, 1, 0))
        result = PAGE_BAD;
    if (result == PAGE_GOOD) {
        page_place(scratch, 0, ctx->size, data, offsets, count, ctx->size - 1, n);
        ctx->ops->seal(ctx, ct, scratch, page, &to, (page_tag *)tag, 1, PAGE_LAST);
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

page_result page_modify_whole(const page_context *ctx, uint8_t *ct, const uint8_t *data,
                              uint64_t page, uint64_t from, uint64_t to, uint8_t *tag,
                              const uint64_t *offsets, size_t count, uint32_t n) {
    enum { USUAL = 4 * CCMEM_PAGE_SIZE_MIN };
    _Alignas(64) uint8_t scratch[USUAL];
    if (ctx->size > USUAL)
        return modify_large(ctx, ct, data, page, from, to, tag, offsets, count, n);
    return modify_in(scratch, ctx, ct, data, page, from, to, tag, offsets, count, n);
}
