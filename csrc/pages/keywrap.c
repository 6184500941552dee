/* SPDX-License-Identifier: Apache-2.0 */
#include "pages/keywrap.h"

#include "crypto/aes/bitslice.h"
#include "memory/secret.h"
#include "platform/cpu.h"

#include <string.h>

#if CCMEM_X86
#include <immintrin.h>
#endif

enum { STEPS = 6 }; /* passes over the key: s of SP 800-38F, 6.1, is six times its semiblocks */

/* ---- the inverse of one block ------------------------------------------------------------------
 * */

#if CCMEM_X86
static __attribute__((target("aes"))) CLEAR_REGISTERS void aesni_decrypt(const aes_key *dec,
                                                                         uint8_t block[AES_BLOCK]) {
    const __m128i *rk = (const __m128i *)dec->rk;
    __m128i x = _mm_xor_si128(_mm_loadu_si128((const __m128i *)block), _mm_load_si128(rk));
    for (uint32_t r = 1; r < dec->rounds; r++)
        x = _mm_aesdec_si128(x, _mm_load_si128(rk + r));
    x = _mm_aesdeclast_si128(x, _mm_load_si128(rk + dec->rounds));
    _mm_storeu_si128((__m128i *)block, x);
}
#endif

static void portable_decrypt(const aes_key *enc, uint8_t block[AES_BLOCK]) {
    uint8_t group[BS_BYTES] = {0};

    memcpy(group, block, AES_BLOCK);
    bs_decrypt8(enc, group, group);
    memcpy(block, group, AES_BLOCK);
    ccmem_wipe(group, sizeof group);
    burn_stack();
}

static void decrypt_block(ccmem_tier tier, const keywrap_key *key, uint8_t block[AES_BLOCK]) {
#if CCMEM_X86
    if (tier != CCMEM_TIER_PORTABLE) {
        aesni_decrypt(&key->dec, block);
        return;
    }
#endif
    (void)tier;
    portable_decrypt(&key->enc, block);
}

/* ---- key wrap ----------------------------------------------------------------------------------
 * */

/* SP 800-38F, 6.2: ICV1. */
static const uint8_t icv[KEYWRAP_UNIT] = {0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6};

/* The first semiblock is mixed with the step's number, big-endian. */
static void add_step(uint8_t a[KEYWRAP_UNIT], uint64_t t) {
    for (int i = 0; i < KEYWRAP_UNIT; i++)
        a[i] ^= (uint8_t)(t >> (56 - 8 * i));
}

void keywrap_expand(keywrap_key *out, const uint8_t *kek, size_t kek_len) {
    aes_expand(&out->enc, kek, kek_len);
    aes_invert(&out->dec, &out->enc);
}

/* RFC 3394, 2.2.1, the second form. The key wanders through `out` behind its first semiblock. */
void keywrap_wrap(ccmem_tier tier, const keywrap_key *key, const uint8_t *in, size_t n,
                  uint8_t *out) {
    uint8_t block[AES_BLOCK]; /* A | R[i] */
    uint64_t t = 0;

    copy_secret(out + KEYWRAP_UNIT, in, n);
    memcpy(block, icv, sizeof icv);
    for (int j = 0; j < STEPS; j++)
        for (size_t i = KEYWRAP_UNIT; i <= n; i += KEYWRAP_UNIT) {
            copy_secret(block + KEYWRAP_UNIT, out + i, KEYWRAP_UNIT);
            aes_encrypt_blocks(tier, &key->enc, block, block, 1);
            add_step(block, ++t);
            copy_secret(out + i, block + KEYWRAP_UNIT, KEYWRAP_UNIT);
        }
    copy_secret(out, block, KEYWRAP_UNIT);
    ccmem_wipe(block, sizeof block);
}

/* RFC 3394, 2.2.2, the second form. */
int keywrap_unwrap(ccmem_tier tier, const keywrap_key *key, const uint8_t *in, size_t n,
                   uint8_t *out) {
    uint8_t block[AES_BLOCK];
    uint64_t t = STEPS * (uint64_t)(n / KEYWRAP_UNIT - 1);
    int good;

    n -= KEYWRAP_UNIT;
    copy_secret(block, in, KEYWRAP_UNIT);
    copy_secret(out, in + KEYWRAP_UNIT, n);
    for (int j = 0; j < STEPS; j++)
        for (size_t i = n; i; i -= KEYWRAP_UNIT) {
            uint8_t *r = out + i - KEYWRAP_UNIT;
            add_step(block, t--);
            copy_secret(block + KEYWRAP_UNIT, r, KEYWRAP_UNIT);
            decrypt_block(tier, key, block);
            copy_secret(r, block + KEYWRAP_UNIT, KEYWRAP_UNIT);
        }
    good = ccmem_equal(block, icv, sizeof icv);
    if (!good)
        ccmem_wipe(out, n);
    ccmem_wipe(block, sizeof block);
    return good;
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
        keywrap_wrap(tier, &key, in, n, out);
    else
        good = keywrap_unwrap(tier, &key, in, n, out);
    ccmem_wipe(&key, sizeof key);
    return good ? CCMEM_OK : CCMEM_ERR_INTEGRITY;
}
