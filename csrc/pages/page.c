/* SPDX-License-Identifier: Apache-2.0
 * The table of cipher suites, and what all of them share. */
#include "pages/page.h"

#include <string.h>

#include "crypto/aegis/aegis.h"
#include "crypto/xts/xts.h"
#include "memory/secret.h"

static const page_suite suites[CCMEM_CIPHER_COUNT] = {
    [CCMEM_AES_128_XTS] = {"aes-128-xts", 32, sizeof(xts_key), 0},
    [CCMEM_AES_256_XTS] = {"aes-256-xts", 64, sizeof(xts_key), 0},
    [CCMEM_AEGIS_128X2] = {"aegis-128x2", AEGIS_KEY_SIZE, AEGIS_KEY_SIZE, 1},
};

const page_suite *page_suite_of(ccmem_cipher cipher) {
    return (unsigned)cipher < CCMEM_CIPHER_COUNT ? &suites[cipher] : NULL;
}

int ccmem_cipher_authenticated(ccmem_cipher cipher) {
    const page_suite *suite = page_suite_of(cipher);
    return suite && suite->authenticated;
}

void page_init_keyless(page_context *ctx, ccmem_cipher cipher, ccmem_tier tier, uint32_t size) {
    *ctx = (page_context){.size = size};
    if (suites[cipher].authenticated) {
        ctx->ops = &page_aegis;
        ctx->kernels = aegis_tier(tier);
    } else {
        ctx->ops = &page_xts;
        ctx->kernels = xts_tier(tier);
    }
}

ccmem_status page_init(page_context *ctx, ccmem_cipher cipher, ccmem_tier tier, uint32_t size,
                       void *key, const uint8_t *subkey) {
    page_init_keyless(ctx, cipher, tier, size);
    ctx->key = key;
    if (!suites[cipher].authenticated)
        return xts_expand(key, subkey, suites[cipher].subkey_size);
    copy_secret(key, subkey, AEGIS_KEY_SIZE);
    return CCMEM_OK;
}

/* n bytes for `offset` of a page, as far as they lie in what scratch holds. */
static inline void place_run(uint8_t *scratch, uint32_t at, uint32_t span, const uint8_t *run,
                             uint32_t offset, uint32_t n) {
    uint32_t end = offset + n;
    uint32_t lo = offset > at ? offset - at : 0;
    uint32_t hi = end < at + span ? (end > at ? end - at : 0) : span;
    if (lo < hi)
        copy_secret(scratch + lo, run + (at + lo - offset), hi - lo);
}

/* Many runs of n bytes, a constant that one move copies: a general copy takes far longer. */
static inline __attribute__((always_inline)) void place_items(uint8_t *scratch, uint32_t at,
                                                              uint32_t span, const uint8_t *items,
                                                              const uint64_t *offsets, size_t count,
                                                              uint32_t mask, uint32_t n) {
    for (size_t i = 0; i < count; i++) {
        uint32_t offset = (uint32_t)offsets[i] & mask;
        if (offset - at <= span - n) /* wraps, and fails, below `at` */
            memcpy(scratch + (offset - at), items + i * n, n);
        else
            place_run(scratch, at, span, items + i * n, offset, n);
    }
}

void page_place(uint8_t *scratch, uint32_t at, uint32_t span, const uint8_t *data,
                const uint64_t *offsets, size_t count, uint32_t mask, uint32_t n) {
    switch (n) {
    case 1: place_items(scratch, at, span, data, offsets, count, mask, 1); break;
    case 2: place_items(scratch, at, span, data, offsets, count, mask, 2); break;
    case 4: place_items(scratch, at, span, data, offsets, count, mask, 4); break;
    case 8: place_items(scratch, at, span, data, offsets, count, mask, 8); break;
    default:
        for (size_t i = 0; i < count; i++)
            place_run(scratch, at, span, data + i * n, (uint32_t)offsets[i] & mask, n);
    }
}
