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

typedef union any_key {
    aes_gcm_key aes;
    sm4_gcm_key sm4;
} any_key;

typedef enum block_cipher { BY_AES, BY_SM4 } block_cipher;

/* A call of one of the functions below. */
typedef struct gcm_call {
    block_cipher by;
    ccmem_tier tier;
    const uint8_t *key;
    size_t key_len;
    gcm_message m; /* but for its key and kernels */
    const uint8_t *in;
    uint8_t *out;
    size_t n;
} gcm_call;

/* Checks a call, and expands its key to `room`, which the caller wipes if all is well. */
static ccmem_status begin(gcm_call *c, any_key *room, const uint8_t *tag, size_t tag_len) {
    const size_t len = c->key_len;
    ccmem_status status = ccmem_tier_check(c->tier);
    if (status)
        return status;
    if (!c->key || (c->by == BY_SM4 ? len != SM4_KEY_SIZE : len != 16 && len != 24 && len != 32))
        return CCMEM_ERR_ARGUMENT;
    status = check_message(&c->m, c->in, c->out, c->n, tag, tag_len);
    if (status)
        return status;
    c->m.key = room;
    if (c->by == BY_SM4) {
        c->m.ops = tier_kernels_of(c->tier).sm4_gcm;
        sm4_gcm_expand(&room->sm4, c->key);
    } else {
        c->m.ops = tier_kernels_of(c->tier).aes_gcm;
        aes_gcm_expand(&room->aes, c->key, len);
    }
    return CCMEM_OK;
}

static ccmem_status encrypt(gcm_call c, uint8_t *tag, size_t tag_len) {
    any_key room;
    ccmem_status status = begin(&c, &room, tag, tag_len);

    if (status)
        return status;
    gcm_seal_message(&c.m, c.in, c.out, c.n, tag, tag_len);
    ccmem_wipe(&room, sizeof room);
    return CCMEM_OK;
}

static ccmem_status decrypt(gcm_call c, const uint8_t *tag, size_t tag_len) {
    any_key room;
    ccmem_status status = begin(&c, &room, tag, tag_len);

    if (status)
        return status;
    status = gcm_open_message(&c.m, c.in, c.out, c.n, tag, tag_len);
    ccmem_wipe(&room, sizeof room);
    return status;
}

ccmem_status ccmem_aes_gcm_encrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   uint8_t *tag, size_t tag_len) {
    const gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    return encrypt((gcm_call){BY_AES, tier, key, key_len, m, in, out, n}, tag, tag_len);
}

ccmem_status ccmem_aes_gcm_decrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   const uint8_t *tag, size_t tag_len) {
    const gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    return decrypt((gcm_call){BY_AES, tier, key, key_len, m, in, out, n}, tag, tag_len);
}

ccmem_status ccmem_sm4_gcm_encrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   uint8_t *tag, size_t tag_len) {
    const gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    return encrypt((gcm_call){BY_SM4, tier, key, key_len, m, in, out, n}, tag, tag_len);
}

ccmem_status ccmem_sm4_gcm_decrypt(ccmem_tier tier, const uint8_t *key, size_t key_len,
                                   const uint8_t *iv, size_t iv_len, const uint8_t *ad,
                                   size_t ad_len, const uint8_t *in, uint8_t *out, size_t n,
                                   const uint8_t *tag, size_t tag_len) {
    const gcm_message m = {.iv = iv, .iv_len = iv_len, .ad = ad, .ad_len = ad_len};
    return decrypt((gcm_call){BY_SM4, tier, key, key_len, m, in, out, n}, tag, tag_len);
}
