/* SPDX-License-Identifier: Apache-2.0
 * The cipher suites: one descriptor each. A suite is added by its kernels, a number in ccmem.h and
 * an entry here. */
#include "crypto/aegis/aegis.h"
#include "crypto/xts/xts.h"
#include "memory/secret.h"
#include "pages/page.h"
#include "pages/subkeys.h"

_Static_assert((int)AEGIS_KEY_SIZE == (int)SUBKEY_SIZE, "a subkey that is the key has a place");
_Static_assert((int)AEGIS_TAG_SIZE == (int)PAGE_TAG, "stores have room for a tag of this size");

static const void *xts_kernels(const tier_kernels *k) { return k->xts; }

static const void *aegis_kernels(const tier_kernels *k) { return k->aegis; }

static ccmem_status expand_xts(void *key, const uint8_t *subkey, size_t n) {
    return xts_expand(key, subkey, n);
}

static const page_suite suites[CCMEM_CIPHER_COUNT] = {
    [CCMEM_AES_128_XTS] = {.is = {.name = "aes-128-xts", .subkey_size = 32, .aes_rounds = 10},
                           .key_size = sizeof(xts_key),
                           .expand = expand_xts,
                           .kernels = xts_kernels,
                           .pages = &page_xts,
                           .tweaks = 1},
    [CCMEM_AES_256_XTS] = {.is = {.name = "aes-256-xts", .subkey_size = 64, .aes_rounds = 14},
                           .key_size = sizeof(xts_key),
                           .expand = expand_xts,
                           .kernels = xts_kernels,
                           .pages = &page_xts,
                           .tweaks = 1},
    /* An update is eight rounds in each of two lanes, for two blocks in each. */
    [CCMEM_AEGIS_128X2] = {.is = {.name = "aegis-128x2",
                                  .subkey_size = AEGIS_KEY_SIZE,
                                  .tag_size = AEGIS_TAG_SIZE,
                                  .aes_rounds = 4},
                           .key_size = AEGIS_KEY_SIZE,
                           .kernels = aegis_kernels,
                           .pages = &page_aegis},
};

const page_suite *page_suite_of(ccmem_cipher cipher) {
    return (unsigned)cipher < CCMEM_CIPHER_COUNT ? &suites[cipher] : NULL;
}

const ccmem_suite *ccmem_suite_of(ccmem_cipher cipher) {
    const page_suite *suite = page_suite_of(cipher);
    return suite ? &suite->is : NULL;
}

int ccmem_cipher_authenticated(ccmem_cipher cipher) {
    const page_suite *suite = page_suite_of(cipher);
    return suite && suite->is.tag_size;
}

void page_init_keyless(page_context *ctx, ccmem_cipher cipher, ccmem_tier tier, uint32_t size) {
    const page_suite *suite = &suites[cipher];
    const tier_kernels kernels = tier_kernels_of(tier);
    *ctx = (page_context){.ops = suite->pages, .kernels = suite->kernels(&kernels), .size = size};
}

ccmem_status page_init(page_context *ctx, ccmem_cipher cipher, ccmem_tier tier, uint32_t size,
                       void *key, const uint8_t *subkey) {
    const page_suite *suite = &suites[cipher];
    page_init_keyless(ctx, cipher, tier, size);
    ctx->key = key;
    if (suite->expand)
        return suite->expand(key, subkey, suite->is.subkey_size);
    copy_secret(key, subkey, suite->is.subkey_size);
    return CCMEM_OK;
}
