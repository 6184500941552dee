/* SPDX-License-Identifier: Apache-2.0
 * AES-CMAC and the key derivation over it. */
#include "crypto/mac/kdf.h"

#include "memory/secret.h"

#include <string.h>

/* SP 800-38B, 6.1: times x in GF(2^128) with the bits in big-endian order, R_128 = 0x87. */
static void double_block(uint8_t b[AES_BLOCK]) {
    unsigned carry = b[0] >> 7;

    for (int i = 0; i < AES_BLOCK - 1; i++)
        b[i] = (uint8_t)(b[i] << 1 | b[i + 1] >> 7);
    b[AES_BLOCK - 1] = (uint8_t)(b[AES_BLOCK - 1] << 1 ^ (0x87 & (0 - carry)));
}

static __attribute__((noinline)) void cmac_of(const aes_ops *ops, const aes_key *key,
                                              const uint8_t *msg, size_t n, uint8_t tag[16]) {
    uint8_t mask[AES_BLOCK] = {0}, x[AES_BLOCK] = {0};

    ops->encrypt(key, mask, mask, 1);
    double_block(mask); /* K1 */
    for (; n > AES_BLOCK; n -= AES_BLOCK, msg += AES_BLOCK) {
        for (int i = 0; i < AES_BLOCK; i++)
            x[i] ^= msg[i];
        ops->encrypt(key, x, x, 1);
    }
    for (size_t i = 0; i < n; i++)
        x[i] ^= msg[i];
    if (n < AES_BLOCK) {
        x[n] ^= 0x80;
        double_block(mask); /* K2 */
    }
    for (int i = 0; i < AES_BLOCK; i++)
        x[i] ^= mask[i];
    ops->encrypt(key, tag, x, 1);
    ccmem_wipe(mask, sizeof mask);
    ccmem_wipe(x, sizeof x);
}

void cmac(const aes_ops *ops, const aes_key *key, const uint8_t *msg, size_t n, uint8_t tag[16]) {
    cmac_of(ops, key, msg, n, tag);
    burn_stack(); /* compilers keep the two in registers, which are saved there for the calls */
}

static uint8_t *put_be32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
    return p + 4;
}

static uint8_t *put(uint8_t *p, const uint8_t *bytes, size_t n) {
    if (n)
        memcpy(p, bytes, n);
    return p + n;
}

/* The key of kdf_counter_cmac(). */
typedef struct cmac_key {
    const aes_ops *ops;
    const aes_key *key;
} cmac_key;

static void cmac_prf(const void *key, const uint8_t *msg, size_t n, uint8_t *tag) {
    const cmac_key *k = key;
    cmac(k->ops, k->key, msg, n, tag);
}

/* SP 800-108r1, 4.1, with a 32-bit counter before the fixed data. */
void kdf_counter(kdf_prf *prf, size_t size, const void *key, const uint8_t *label, size_t label_len,
                 const uint8_t *context, size_t context_len, uint8_t *out, size_t out_len) {
    uint8_t input[4 + KDF_FIELD_MAX + 1 + KDF_FIELD_MAX + 4], block[KDF_BLOCK_MAX], *p;
    uint32_t i = 0;

    p = put(input + 4, label, label_len);
    *p++ = 0;
    p = put(p, context, context_len);
    p = put_be32(p, (uint32_t)(8 * out_len));
    while (out_len) {
        size_t n = out_len < size ? out_len : size;
        put_be32(input, ++i);
        prf(key, input, (size_t)(p - input), block);
        copy_secret(out, block, n);
        out += n;
        out_len -= n;
    }
    ccmem_wipe(block, sizeof block);
}

void kdf_counter_cmac(const aes_ops *ops, const aes_key *key, const uint8_t *label,
                      size_t label_len, const uint8_t *context, size_t context_len, uint8_t *out,
                      size_t out_len) {
    const cmac_key both = {ops, key};
    kdf_counter(cmac_prf, AES_BLOCK, &both, label, label_len, context, context_len, out, out_len);
}
