/* SPDX-License-Identifier: Apache-2.0
 *
 * The schedules are plain constant-time C for every tier: they cost a microsecond for each key,
 * and one path means that every processor's tests cover it.
 */
#include "crypto/aes/aes.h"

#include "crypto/aes/bitslice.h"
#include "memory/secret.h"
#include "platform/cpu.h"

#include <string.h>

#if CCMEM_X86
#include <immintrin.h>
#endif

/* ---- key schedules --------------------------------------------------------------------------- */

static void sub_word(uint8_t w[4]) {
    uint8_t block[AES_BLOCK] = {0};
    memcpy(block, w, 4);
    bs_sub_bytes(block);
    memcpy(w, block, 4);
    ccmem_wipe(block, sizeof block);
}

/* FIPS 197, 5.2, figure 11, with Nk = key_len / 4. */
void aes_expand(aes_key *out, const uint8_t *key, size_t key_len) {
    static const uint8_t rcon[] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36};
    unsigned nk = (unsigned)key_len / 4, words = 4 * (nk + 7);
    uint8_t (*w)[4] = (uint8_t (*)[4])out->rk, t[4];

    out->rounds = nk + 6;
    copy_secret(w, key, key_len);
    for (unsigned i = nk; i < words; i++) {
        memcpy(t, w[i - 1], 4);
        if (i % nk == 0) {
            uint8_t first = t[0];
            t[0] = t[1];
            t[1] = t[2];
            t[2] = t[3];
            t[3] = first;
            sub_word(t);
            t[0] ^= rcon[i / nk - 1];
        } else if (nk > 6 && i % nk == 4) {
            sub_word(t);
        }
        for (int j = 0; j < 4; j++)
            w[i][j] = w[i - nk][j] ^ t[j];
    }
    ccmem_wipe(t, sizeof t);
    burn_stack();
}

/* Four bytes times x modulo x^8 + x^4 + x^3 + x + 1. */
static uint32_t times_x(uint32_t a) { return (a & 0x7f7f7f7f) << 1 ^ (a >> 7 & 0x01010101) * 0x1b; }

static uint32_t rotr(uint32_t a, int n) { return a >> n | a << (32 - n); }

/* One column, row 0 in the lowest byte: (02 03 01 01) times (05 00 04 00) is (0e 0b 0d 09). */
static uint32_t inv_mix_column(uint32_t a) {
    uint32_t b = a ^ times_x(times_x(a ^ rotr(a, 16)));
    uint32_t s = b ^ rotr(b, 8);
    return times_x(s) ^ rotr(b, 8) ^ rotr(s, 16);
}

void aes_invert(aes_key *out, const aes_key *enc) {
    out->rounds = enc->rounds;
    for (uint32_t r = 0; r <= enc->rounds; r++) {
        const uint8_t *from = enc->rk[enc->rounds - r];
        uint8_t *to = out->rk[r];
        int outer = r == 0 || r == enc->rounds;
        for (int i = 0; i < AES_BLOCK; i += 4) {
            uint32_t a = from[i] | (uint32_t)from[i + 1] << 8 | (uint32_t)from[i + 2] << 16 |
                         (uint32_t)from[i + 3] << 24;
            if (!outer)
                a = inv_mix_column(a);
            for (int j = 0; j < 4; j++)
                to[i + j] = (uint8_t)(a >> 8 * j);
        }
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

#if CCMEM_X86
/* SSE2 comes with x86-64; AES-NI is the one extension used. */
#define TARGET_AES __attribute__((target("aes")))

static inline
    __attribute__((always_inline)) TARGET_AES void aesni_group(const aes_key *enc, uint8_t *out,
                                                               const uint8_t *in, int n) {
    const __m128i *rk = (const __m128i *)enc->rk;
    __m128i x[8], k = _mm_load_si128(rk);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        x[i] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)in + i), k);
    for (uint32_t r = 1; r < enc->rounds; r++) {
        k = _mm_load_si128(rk + r);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            x[i] = _mm_aesenc_si128(x[i], k);
    }
    k = _mm_load_si128(rk + enc->rounds);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        _mm_storeu_si128((__m128i *)out + i, _mm_aesenclast_si128(x[i], k));
}

/* Eight blocks in flight keep the AES unit of every processor that has one busy. */
static TARGET_AES CLEAR_REGISTERS void aesni_blocks(const aes_key *enc, uint8_t *out,
                                                    const uint8_t *in, size_t nblocks) {
    for (; nblocks >= 8; nblocks -= 8, in += 8 * AES_BLOCK, out += 8 * AES_BLOCK)
        aesni_group(enc, out, in, 8);
    for (; nblocks; nblocks--, in += AES_BLOCK, out += AES_BLOCK)
        aesni_group(enc, out, in, 1);
}
#endif

static void portable_blocks(const aes_key *enc, uint8_t *out, const uint8_t *in, size_t nblocks) {
    uint8_t group[BS_BYTES] = {0};

    for (; nblocks >= BS_BLOCKS; nblocks -= BS_BLOCKS, in += BS_BYTES, out += BS_BYTES)
        bs_encrypt8(enc, out, in);
    if (nblocks) {
        memcpy(group, in, nblocks * AES_BLOCK);
        bs_encrypt8(enc, group, group);
        memcpy(out, group, nblocks * AES_BLOCK);
        ccmem_wipe(group, sizeof group);
    }
    burn_stack();
}

void aes_encrypt_blocks(ccmem_tier tier, const aes_key *enc, uint8_t *out, const uint8_t *in,
                        size_t nblocks) {
#if CCMEM_X86
    if (tier != CCMEM_TIER_PORTABLE) {
        aesni_blocks(enc, out, in, nblocks);
        return;
    }
#endif
    (void)tier;
    portable_blocks(enc, out, in, nblocks);
}
