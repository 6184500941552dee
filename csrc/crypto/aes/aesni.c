/* SPDX-License-Identifier: Apache-2.0
 * AES blocks with AES-NI: every x86 processor with AES instructions, in the tiers for wider
 * registers too, since what comes here is a few blocks. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "crypto/aes/aes.h"
#include "memory/secret.h"

/* SSE2 comes with x86-64; AES-NI is the one extension used. */
#define TARGET_AES __attribute__((target("aes")))

static inline __attribute__((always_inline)) TARGET_AES void
aesni_group(const aes_key *enc, uint8_t *out, const uint8_t *in, int n) {
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

static TARGET_AES CLEAR_REGISTERS void aesni_decrypt(const aes_key *enc, const aes_key *dec,
                                                     uint8_t block[AES_BLOCK]) {
    const __m128i *rk = (const __m128i *)dec->rk;
    (void)enc;
    __m128i x = _mm_xor_si128(_mm_loadu_si128((const __m128i *)block), _mm_load_si128(rk));
    for (uint32_t r = 1; r < dec->rounds; r++)
        x = _mm_aesdec_si128(x, _mm_load_si128(rk + r));
    x = _mm_aesdeclast_si128(x, _mm_load_si128(rk + dec->rounds));
    _mm_storeu_si128((__m128i *)block, x);
}

const aes_ops aes_aesni = {.encrypt = aesni_blocks, .decrypt_block = aesni_decrypt};
#endif
