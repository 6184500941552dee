/* SPDX-License-Identifier: Apache-2.0
 * The cipher suites: one descriptor each. A suite is added by its kernels, a number in ccmem.h and
 * an entry here. */
#include "crypto/aegis/aegis.h"
#include "crypto/aegis256/aegis256.h"
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/sm4/sm4.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "crypto/xts/xts.h"
#include "memory/secret.h"
#include "pages/page.h"

_Static_assert((int)AEGIS_TAG_SIZE == (int)PAGE_TAG, "stores have room for a tag of this size");

static const void *xts_kernels(const tier_kernels *k) { return k->xts; }

static const void *aegis_kernels(const tier_kernels *k) { return k->aegis; }

static const void *aegis256_kernels(const tier_kernels *k) { return k->aegis256; }

static const void *aes_gcm_kernels(const tier_kernels *k) { return k->aes_gcm; }

static ccmem_status expand_xts(void *key, const uint8_t *subkey, size_t n) {
    return xts_expand(key, subkey, n);
}

static ccmem_status expand_aes_gcm(void *key, const uint8_t *subkey, size_t n) {
    aes_gcm_expand(key, subkey, n);
    return CCMEM_OK;
}

/* Blocks under one key of a block cipher of 16 bytes: two of n meet by chance with a probability of
 * about n^2 / 2^128, here 2^-40. IEEE 1619-2018, 5.1, asks for no more than 2^64. */
enum { BLOCKS_LOG2 = 44 };

static const void *sm4_gcm_kernels(const tier_kernels *k) { return k->sm4_gcm; }

static ccmem_status expand_sm4_gcm(void *key, const uint8_t *subkey, size_t n) {
    (void)n;
    sm4_gcm_expand(key, subkey);
    return CCMEM_OK;
}

static const void *sm4_xts_kernels(const tier_kernels *k) { return &k->sm4->xts; }

static ccmem_status expand_sm4_xts(void *key, const uint8_t *subkey, size_t n) {
    (void)n;
    return sm4_xts_expand(key, subkey);
}

static const page_suite suites[CCMEM_CIPHER_COUNT] = {
    [CCMEM_AES_128_XTS] = {.is = {.name = "aes-128-xts",
                                  .subkey_size = 32,
                                  .aes_rounds = 10,
                                  .key_bits = 128,
                                  .blocks_log2 = BLOCKS_LOG2,
                                  .standards = "FIPS 197, IEEE 1619-2018, NIST SP 800-38E"},
                           .key_size = sizeof(xts_key),
                           .expand = expand_xts,
                           .kernels = xts_kernels,
                           .pages = &page_xts,
                           .tweaks = 1},
    [CCMEM_AES_256_XTS] = {.is = {.name = "aes-256-xts",
                                  .subkey_size = 64,
                                  .aes_rounds = 14,
                                  .key_bits = 256,
                                  .blocks_log2 = BLOCKS_LOG2,
                                  .standards = "FIPS 197, IEEE 1619-2018, NIST SP 800-38E"},
                           .key_size = sizeof(xts_key),
                           .expand = expand_xts,
                           .kernels = xts_kernels,
                           .pages = &page_xts,
                           .tweaks = 1},
    /* An update is eight rounds in each of two lanes, for two blocks in each. */
    [CCMEM_AEGIS_128X2] = {.is = {.name = "aegis-128x2",
                                  .subkey_size = AEGIS_KEY_SIZE,
                                  .tag_size = AEGIS_TAG_SIZE,
                                  .aes_rounds = 4,
                                  .key_bits = 128,
                                  .standards = "RFC 10032"},
                           .key_size = AEGIS_KEY_SIZE,
                           .kernels = aegis_kernels,
                           .pages = &page_aegis},
    [CCMEM_AES_256_GCM] = {.is = {.name = "aes-256-gcm",
                                  .subkey_size = 32,
                                  .tag_size = GCM_TAG_SIZE,
                                  .aes_rounds = 14,
                                  .key_bits = 256,
                                  .blocks_log2 = BLOCKS_LOG2,
                                  .standards = "FIPS 197, NIST SP 800-38D"},
                           .key_size = sizeof(aes_gcm_key),
                           .expand = expand_aes_gcm,
                           .kernels = aes_gcm_kernels,
                           .pages = &page_gcm,
                           .versions = ((uint64_t)1 << 48) - 1},
    [CCMEM_AEGIS_256X2] = {.is = {.name = "aegis-256x2",
                                  .subkey_size = AEGIS256_KEY_SIZE,
                                  .tag_size = AEGIS_TAG_SIZE,
                                  .aes_rounds = 6,
                                  .key_bits = 256,
                                  .standards = "RFC 10032"},
                           .key_size = AEGIS256_KEY_SIZE,
                           .kernels = aegis256_kernels,
                           .pages = &page_aegis},
    [CCMEM_SM4_XTS] = {.is = {.name = "sm4-xts",
                              .subkey_size = 2 * SM4_KEY_SIZE,
                              .key_bits = 128,
                              .blocks_log2 = BLOCKS_LOG2,
                              .standards = "GB/T 32907-2016, GB/T 17964-2021"},
                       .key_size = sizeof(sm4_xts_key),
                       .expand = expand_sm4_xts,
                       .kernels = sm4_xts_kernels,
                       .pages = &page_xts,
                       .derive = KEY_BY_SM3,
                       .tweaks = 1},
    [CCMEM_SM4_GCM] = {.is = {.name = "sm4-gcm",
                              .subkey_size = SM4_KEY_SIZE,
                              .tag_size = GCM_TAG_SIZE,
                              .key_bits = 128,
                              .blocks_log2 = BLOCKS_LOG2,
                              .standards = "GB/T 32907-2016, GB/T 36624-2018, RFC 8998"},
                       .key_size = sizeof(sm4_gcm_key),
                       .expand = expand_sm4_gcm,
                       .kernels = sm4_gcm_kernels,
                       .pages = &page_gcm,
                       .derive = KEY_BY_SM3,
                       .versions = ((uint64_t)1 << 48) - 1},
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
