/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages under GCM as public functions, one call each: they check their arguments and that the
 * tier is usable, expand the key on the stack and wipe it. */
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "memory/secret.h"
#include "tiers/tiers.h"

/* SP 800-38D, 5.2.1.1: a text has at most 2^32 - 2 blocks, and what is hashed beside it 2^61 - 1
 * bytes. 5.2.1.2: tags of 4 and 8 bytes are for some uses alone. */
static const uint64_t TEXT_MAX = ((uint64_t)1 << 36) - 32, HASHED_MAX = ((uint64_t)1 << 61) - 1;

/* Of a message with all but its key. */
static ccmem_status check_message(const gcm_message *m, const uint8_t *in, const uint8_t *out,
                                  size_t n, const uint8_t *tag, size_t tag_len) {
    if (!m->iv || !m->iv_len || m->iv_len > HASHED_MAX || (m->ad_len && !m->ad) ||
        m->ad_len > HASHED_MAX || (n && (!in || !out)) || n > TEXT_MAX || !tag)
        return CCMEM_ERR_ARGUMENT;
    return tag_len == 4 || tag_len == 8 || (tag_len >= 12 && tag_len <= GCM_TAG_SIZE)
               ? CCMEM_OK
               : CCMEM_ERR_ARGUMENT;
}

static ccmem_status aes_message(ccmem_tier tier, const uint8_t *key, size_t key_len, gcm_message *m,
                                aes_gcm_key *expanded) {
    ccmem_status status = ccmem_tier_check(tier);
    if (status)
        return status;
    if (!key || (key_len != 16 && key_len != 24 && key_len != 32))
        return CCMEM_ERR_ARGUMENT;
    m->ops = tier_kernels_of(tier).aes_gcm;
    m->key = expanded;
    return CCMEM_OK;
}

ccmem_status ccmem_aes_gcm_encrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   uint8_t *tag, size_t tag_len) {
    gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    aes_gcm_key expanded;
    ccmem_status status = aes_message(tier, key, key_len, &m, &expanded);

    if (status == CCMEM_OK)
        status = check_message(&m, in, out, n, tag, tag_len);
    if (status)
        return status;
    aes_gcm_expand(&expanded, key, key_len);
    gcm_seal_message(&m, in, out, n, tag, tag_len);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

ccmem_status ccmem_aes_gcm_decrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   const uint8_t *tag, size_t tag_len) {
    gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    aes_gcm_key expanded;
    ccmem_status status = aes_message(tier, key, key_len, &m, &expanded);

    if (status == CCMEM_OK)
        status = check_message(&m, in, out, n, tag, tag_len);
    if (status)
        return status;
    aes_gcm_expand(&expanded, key, key_len);
    status = gcm_open_message(&m, in, out, n, tag, tag_len);
    ccmem_wipe(&expanded, sizeof expanded);
    return status;
}

static ccmem_status sm4_message(ccmem_tier tier, const uint8_t *key, size_t key_len, gcm_message *m,
                                sm4_gcm_key *expanded) {
    ccmem_status status = ccmem_tier_check(tier);
    if (status)
        return status;
    if (!key || key_len != SM4_KEY_SIZE)
        return CCMEM_ERR_ARGUMENT;
    m->ops = tier_kernels_of(tier).sm4_gcm;
    m->key = expanded;
    return CCMEM_OK;
}

ccmem_status ccmem_sm4_gcm_encrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   uint8_t *tag, size_t tag_len) {
    gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    sm4_gcm_key expanded;
    ccmem_status status = sm4_message(tier, key, key_len, &m, &expanded);

    if (status == CCMEM_OK)
        status = check_message(&m, in, out, n, tag, tag_len);
    if (status)
        return status;
    sm4_gcm_expand(&expanded, key);
    gcm_seal_message(&m, in, out, n, tag, tag_len);
    ccmem_wipe(&expanded, sizeof expanded);
    return CCMEM_OK;
}

ccmem_status ccmem_sm4_gcm_decrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   const uint8_t *tag, size_t tag_len) {
    gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    sm4_gcm_key expanded;
    ccmem_status status = sm4_message(tier, key, key_len, &m, &expanded);

    if (status == CCMEM_OK)
        status = check_message(&m, in, out, n, tag, tag_len);
    if (status)
        return status;
    sm4_gcm_expand(&expanded, key);
    status = gcm_open_message(&m, in, out, n, tag, tag_len);
    ccmem_wipe(&expanded, sizeof expanded);
    return status;
}
