/* SPDX-License-Identifier: Apache-2.0
 * Pages under the GCM of a block cipher: a page is one message with a 16-byte tag, and its place is
 * what the nonce is made of and, as a whole, its associated data. */
#include "pages/page.h"

#include <string.h>

#include "crypto/gcm/gcm.h"
#include "memory/secret.h"
#include "pages/page_whole.h"

_Static_assert((int)PAGE_BATCH <= (int)GCM_BATCH, "a batch is one call of the kernel");
_Static_assert((int)PAGE_TAG == (int)GCM_TAG_SIZE, "tags have the cipher's size");

static inline const gcm_ops *kernels(const page_context *ctx) { return ctx->kernels; }

static inline unsigned kernel_flags(unsigned flags) {
    return (flags & PAGE_STREAM ? GCM_STREAM : 0) | (flags & PAGE_LAST ? GCM_LAST : 0);
}

/* Kernels that work on whole groups have larger frames than burn_stack() reaches: of AES-GCM up to
 * 1.6 KiB, of SM4-GCM 2 to 3.7 (tests/native/test_frames.py). */
enum { USUAL_SPILLS = 3072, MORE_SPILLS = 4096, MOST_SPILLS = 8192 };

#define BURN(name, size)                                                                           \
    static __attribute__((noinline)) void name(void) {                                             \
        uint8_t below[size];                                                                       \
        ccmem_wipe(below, sizeof below);                                                           \
    }
BURN(burn_usual, USUAL_SPILLS)
BURN(burn_more, MORE_SPILLS)
BURN(burn_most, MOST_SPILLS)
#undef BURN

static inline void clean_up(const page_context *ctx) {
    const int spills = kernels(ctx)->spills;
    if (spills > MORE_SPILLS)
        burn_most();
    else if (spills > USUAL_SPILLS)
        burn_more();
    else if (spills)
        burn_usual();
}

static void put_le(uint8_t *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

/* Nonce: the page's number in 48 bits, then the version modulo 2^48, little-endian. It never
 * repeats under one key: there are no more page numbers (PAGE_NUMBERS), and the versions that a
 * page has under one key follow each other and are fewer (the suite's `versions`). A page that is
 * put in the place of one whose number or version is equal only modulo 2^48 does not match: both
 * are in the associated data as well, 8 bytes each. */
static void make_place(gcm_place *out, uint64_t page, uint64_t version) {
    put_le(out->nonce, page, 6);
    put_le(out->nonce + 6, version, 6);
    memset(out->unused, 0, sizeof out->unused);
    put_le(out->ad, page, 8);
    put_le(out->ad + 8, version, 8);
}

static void make_places(gcm_place *out, uint64_t page, const uint64_t *version, size_t n) {
    for (size_t i = 0; i < n; i++)
        make_place(out + i, page + i, version[i]);
}

static void seal(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                 const uint64_t *version, page_tag *tag, size_t n, unsigned flags) {
    gcm_place place[PAGE_BATCH];
    make_places(place, page, version, n);
    kernels(ctx)->seal_pages(ctx->key, dst, src, n, ctx->size, place, tag, kernel_flags(flags));
    clean_up(ctx);
}

static uint64_t open(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     const uint64_t *version, const page_tag *tag, size_t n, unsigned flags) {
    gcm_place place[PAGE_BATCH];
    make_places(place, page, version, n);
    uint64_t bad =
        kernels(ctx)->open_pages(ctx->key, dst, src, n, ctx->size, place, tag, kernel_flags(flags));
    clean_up(ctx);
    return bad;
}

/* The kernels fetch what follows a page, which is not what is opened next. */
static void fetch(const uint8_t *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 64)
        __builtin_prefetch((const void *)((uintptr_t)p + i), 0, 2);
}

static int open_next(const page_context *ctx, uint8_t *dst, const uint8_t *src, uint64_t page,
                     uint64_t version, const page_tag *tag, const uint8_t *near,
                     const uint8_t *far) {
    gcm_place place;
    (void)near; /* was far before */
    make_place(&place, page, version);
    fetch(far, ctx->size);
    int good = !kernels(ctx)->open_pages(ctx->key, dst, src, 1, ctx->size, &place, tag, GCM_LAST);
    if (kernels(ctx)->spills > USUAL_SPILLS) /* more than the caller reaches */
        clean_up(ctx);
    return good;
}

static page_result open_part(const page_context *ctx, uint8_t *dst, const uint8_t *src,
                             uint64_t page, uint64_t version, const uint8_t *tag, uint32_t offset,
                             uint32_t n, unsigned flags) {
    gcm_place place;
    make_place(&place, page, version);
    int good = kernels(ctx)->open_part(ctx->key, dst, src, ctx->size, &place, tag, offset, n,
                                       kernel_flags(flags));
    clean_up(ctx);
    return good ? PAGE_GOOD : PAGE_BAD;
}

static size_t fused_step(const page_context *ctx) {
    (void)ctx;
    return 0; /* products take opened tiles */
}

const page_ops page_gcm = {.seal = seal,
                           .open = open,
                           .open_next = open_next,
                           .open_part = open_part,
                           .modify = page_modify_whole,
                           .fused_step = fused_step};
