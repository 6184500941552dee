/* SPDX-License-Identifier: Apache-2.0
 *
 * The primitives as public functions, one call each: they check their arguments and that the tier
 * is usable, expand the key on the stack and wipe it. */
#include "crypto/aegis/aegis.h"
#include "crypto/aes/keywrap.h"
#include "crypto/mac/kdf.h"
#include "crypto/xts/xts.h"
#include "memory/secret.h"
#include "tiers/tiers.h"

ccmem_status ccmem_xts(ccmem_tier tier, int encrypt, const uint8_t *key, size_t key_len,
                       const uint8_t tweak[16], const uint8_t *in, uint8_t *out, size_t n) {
    xts_key expanded;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!key || !tweak || !in || !out || n < AES_BLOCK || (encrypt != 0 && encrypt != 1))
        return CCMEM_ERR_ARGUMENT;
    status = xts_expand(&expanded, key, key_len);
    if (status)
        return status;
    xts_crypt(tier_kernels_of(tier).xts, &expanded, encrypt, tweak, in, out, n);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

/* The longest text and the most associated data are 2^61 - 1 bytes (RFC 10032, 3 and 5): their
 * lengths in bits go into 64. */
static int too_long(size_t n) { return (uint64_t)n >> 61 != 0; }

static ccmem_status check_arguments(ccmem_tier tier, unsigned lanes, const uint8_t *key,
                                    const uint8_t *nonce, const uint8_t *ad, size_t ad_len,
                                    const uint8_t *in, const uint8_t *out, size_t n,
                                    const uint8_t *tag, size_t tag_len) {
    ccmem_status status = ccmem_tier_check(tier);
    if (status)
        return status;
    if ((lanes != 1 && lanes != 2) || (tag_len != 16 && tag_len != 32))
        return CCMEM_ERR_ARGUMENT;
    if (!key || !nonce || !tag || (ad_len && !ad) || (n && (!in || !out)))
        return CCMEM_ERR_ARGUMENT;
    return too_long(n) || too_long(ad_len) ? CCMEM_ERR_ARGUMENT : CCMEM_OK;
}

ccmem_status ccmem_aegis_encrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[16],
                                 const uint8_t nonce[16], const uint8_t *ad, size_t ad_len,
                                 const uint8_t *in, uint8_t *out, size_t n, uint8_t *tag,
                                 size_t tag_len) {
    ccmem_status status =
        check_arguments(tier, lanes, key, nonce, ad, ad_len, in, out, n, tag, tag_len);

    if (status)
        return status;
    aegis_seal_message(tier_kernels_of(tier).aegis, lanes, key, nonce, ad, ad_len, in, out, n, tag,
                       tag_len);
    return CCMEM_OK;
}

ccmem_status ccmem_aegis_decrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[16],
                                 const uint8_t nonce[16], const uint8_t *ad, size_t ad_len,
                                 const uint8_t *in, uint8_t *out, size_t n, const uint8_t *tag,
                                 size_t tag_len) {
    ccmem_status status =
        check_arguments(tier, lanes, key, nonce, ad, ad_len, in, out, n, tag, tag_len);

    if (status)
        return status;
    return aegis_open_message(tier_kernels_of(tier).aegis, lanes, key, nonce, ad, ad_len, in, out,
                              n, tag, tag_len);
}

ccmem_status ccmem_aegis256_encrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[32],
                                    const uint8_t nonce[32], const uint8_t *ad, size_t ad_len,
                                    const uint8_t *in, uint8_t *out, size_t n, uint8_t *tag,
                                    size_t tag_len) {
    ccmem_status status =
        check_arguments(tier, lanes, key, nonce, ad, ad_len, in, out, n, tag, tag_len);

    if (status)
        return status;
    aegis_seal_message(tier_kernels_of(tier).aegis256, lanes, key, nonce, ad, ad_len, in, out, n,
                       tag, tag_len);
    return CCMEM_OK;
}

ccmem_status ccmem_aegis256_decrypt(ccmem_tier tier, unsigned lanes, const uint8_t key[32],
                                    const uint8_t nonce[32], const uint8_t *ad, size_t ad_len,
                                    const uint8_t *in, uint8_t *out, size_t n, const uint8_t *tag,
                                    size_t tag_len) {
    ccmem_status status =
        check_arguments(tier, lanes, key, nonce, ad, ad_len, in, out, n, tag, tag_len);

    if (status)
        return status;
    return aegis_open_message(tier_kernels_of(tier).aegis256, lanes, key, nonce, ad, ad_len, in,
                              out, n, tag, tag_len);
}

ccmem_status ccmem_cmac(ccmem_tier tier, const uint8_t *key, size_t key_len, const uint8_t *msg,
                        size_t n, uint8_t tag[16]) {
    aes_key expanded;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!key || (key_len != 16 && key_len != 24 && key_len != 32) || (!msg && n) || !tag)
        return CCMEM_ERR_ARGUMENT;
    aes_expand(&expanded, key, key_len);
    cmac(tier_kernels_of(tier).aes, &expanded, msg, n, tag);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

ccmem_status ccmem_kdf(ccmem_tier tier, const uint8_t *key, size_t key_len, const uint8_t *label,
                       size_t label_len, const uint8_t *context, size_t context_len, uint8_t *out,
                       size_t out_len) {
    aes_key expanded;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!key || (key_len != 16 && key_len != 32) || (!label && label_len) ||
        label_len > KDF_FIELD_MAX || (!context && context_len) || context_len > KDF_FIELD_MAX ||
        !out || !out_len || out_len > KDF_OUT_MAX)
        return CCMEM_ERR_ARGUMENT;
    aes_expand(&expanded, key, key_len);
    kdf_counter_cmac(tier_kernels_of(tier).aes, &expanded, label, label_len, context, context_len,
                     out, out_len);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

ccmem_status ccmem_aes_kw(ccmem_tier tier, int wrap, const uint8_t *kek, size_t kek_len,
                          const uint8_t *in, size_t n, uint8_t *out) {
    size_t extra = wrap ? 0 : KEYWRAP_UNIT;
    keywrap_key key;
    int good = 1;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!kek || (kek_len != 16 && kek_len != 24 && kek_len != 32) || !in || !out ||
        n % KEYWRAP_UNIT || n < KEYWRAP_MIN + extra || n > KEYWRAP_MAX + extra)
        return CCMEM_ERR_ARGUMENT;
    keywrap_expand(&key, kek, kek_len);
    if (wrap)
        keywrap_wrap(tier_kernels_of(tier).aes, &key, in, n, out);
    else
        good = keywrap_unwrap(tier_kernels_of(tier).aes, &key, in, n, out);
    ccmem_wipe(&key, sizeof key);
    return good ? CCMEM_OK : CCMEM_ERR_INTEGRITY;
}
