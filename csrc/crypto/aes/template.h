/* SPDX-License-Identifier: Apache-2.0
 *
 * AES blocks of every SIMD tier. A tier file defines TARGET, includes simd/v128.h or what another
 * processor has in its place, defines AES_OPS, the name of the table, then includes this file once.
 */

INLINE void encrypt_group(const aes_key *enc, uint8_t *out, const uint8_t *in, int n) {
    const v128 *rk = (const v128 *)enc->rk;
    v128 x[8], k = v128_load_aligned(rk);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        x[i] = v128_xor(v128_load((const v128 *)in + i), k);
    for (uint32_t r = 1; r < enc->rounds; r++) {
        k = v128_load_aligned(rk + r);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            x[i] = v128_aesenc(x[i], k);
    }
    k = v128_load_aligned(rk + enc->rounds);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        v128_store((v128 *)out + i, v128_aesenclast(x[i], k));
}

/* Eight blocks in flight keep the AES unit of every processor that has one busy. */
static TARGET CLEAR_REGISTERS void encrypt(const aes_key *enc, uint8_t *out, const uint8_t *in,
                                           size_t nblocks) {
    for (; nblocks >= 8; nblocks -= 8, in += 8 * AES_BLOCK, out += 8 * AES_BLOCK)
        encrypt_group(enc, out, in, 8);
    for (; nblocks; nblocks--, in += AES_BLOCK, out += AES_BLOCK)
        encrypt_group(enc, out, in, 1);
}

static TARGET CLEAR_REGISTERS void decrypt_block(const aes_key *enc, const aes_key *dec,
                                                 uint8_t block[AES_BLOCK]) {
    const v128 *rk = (const v128 *)dec->rk;
    (void)enc;
    v128 x = v128_xor(v128_load(block), v128_load_aligned(rk));
    for (uint32_t r = 1; r < dec->rounds; r++)
        x = v128_aesdec(x, v128_load_aligned(rk + r));
    x = v128_aesdeclast(x, v128_load_aligned(rk + dec->rounds));
    v128_store(block, x);
}

const aes_ops AES_OPS = {.encrypt = encrypt, .decrypt_block = decrypt_block};
