/* SPDX-License-Identifier: Apache-2.0
 *
 * The primitives of the suites under SM4 as public functions, one call each; see api/hazmat.c. */
#include "crypto/mac/kdf.h"
#include "crypto/sm3/sm3.h"
#include "crypto/sm4/sm4.h"
#include "memory/secret.h"
#include "tiers/tiers.h"

ccmem_status ccmem_sm4(ccmem_tier tier, int encrypt, const uint8_t key[16], const uint8_t *in,
                       uint8_t *out, size_t nblocks) {
    sm4_key expanded;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!key || (nblocks && (!in || !out)) || (encrypt != 0 && encrypt != 1))
        return CCMEM_ERR_ARGUMENT;
    sm4_expand(&expanded, key);
    tier_kernels_of(tier).sm4->blocks(&expanded, !encrypt, out, in, nblocks);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

ccmem_status ccmem_sm4_xts(ccmem_tier tier, int encrypt, int ieee, const uint8_t key[32],
                           const uint8_t tweak[16], const uint8_t *in, uint8_t *out, size_t n) {
    sm4_xts_key expanded;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!key || !tweak || !in || !out || n < SM4_BLOCK || (encrypt != 0 && encrypt != 1) ||
        (ieee != 0 && ieee != 1))
        return CCMEM_ERR_ARGUMENT;
    status = sm4_xts_expand(&expanded, key);
    if (status)
        return status;
    sm4_xts_crypt(tier_kernels_of(tier).sm4, &expanded, ieee ? SM4_DOUBLING_IEEE : SM4_DOUBLING_GB,
                  !encrypt, tweak, in, out, n);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

ccmem_status ccmem_sm3(const uint8_t *msg, size_t n, uint8_t digest[32]) {
    sm3_state s;

    if ((!msg && n) || !digest)
        return CCMEM_ERR_ARGUMENT;
    sm3_begin(&s);
    sm3_add(&s, msg, n);
    sm3_end(&s, digest);
    return CCMEM_OK;
}

ccmem_status ccmem_hmac_sm3(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t n,
                            uint8_t tag[32]) {
    if (!key || !key_len || key_len > SM3_BLOCK || (!msg && n) || !tag)
        return CCMEM_ERR_ARGUMENT;
    hmac_sm3(key, key_len, msg, n, tag);
    return CCMEM_OK;
}

ccmem_status ccmem_kdf_sm3(const uint8_t *key, size_t key_len, const uint8_t *label,
                           size_t label_len, const uint8_t *context, size_t context_len,
                           uint8_t *out, size_t out_len) {
    if (!key || !key_len || key_len > SM3_BLOCK || (!label && label_len) ||
        label_len > KDF_FIELD_MAX || (!context && context_len) || context_len > KDF_FIELD_MAX ||
        !out || !out_len || out_len > KDF_OUT_MAX)
        return CCMEM_ERR_ARGUMENT;
    kdf_counter_sm3(key, key_len, label, label_len, context, context_len, out, out_len);
    return CCMEM_OK;
}
