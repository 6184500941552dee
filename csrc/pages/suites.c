/* SPDX-License-Identifier: Apache-2.0
 * The table of cipher suites. */
#include "pages/page.h"

#include <string.h>

#include "crypto/aegis/aegis.h"
#include "crypto/xts/xts.h"
#include "memory/secret.h"
#include "tiers/tiers.h"

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
        ctx->kernels = tier_kernels_of(tier).aegis;
    } else {
        ctx->ops = &page_xts;
        ctx->kernels = tier_kernels_of(tier).xts;
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
