/* SPDX-License-Identifier: Apache-2.0
 * AES (FIPS 197): key schedules, and blocks by themselves with the kernels of each tier behind one
 * table of functions. */
#ifndef CCMEM_AES_H
#define CCMEM_AES_H

#include "ccmem.h"

enum { AES_BLOCK = 16, AES_MAX_ROUNDS = 14 };

/* Round keys in the byte order of FIPS 197, one after the other; the same layout for all tiers. */
typedef struct aes_key {
    _Alignas(16) uint8_t rk[AES_MAX_ROUNDS + 1][AES_BLOCK];
    uint32_t rounds; /* 10, 12 or 14 */
} aes_key;

/* Expands a key of 16, 24 or 32 bytes, in constant time on every processor. */
void aes_expand(aes_key *out, const uint8_t *key, size_t key_len);

/* The decryption schedule of the equivalent inverse cipher (FIPS 197, 5.3.5): round keys in the
 * order they are used, InvMixColumns applied to all but the first and the last. */
void aes_invert(aes_key *out, const aes_key *enc);

/* Blocks by themselves (ECB), in place or not overlapping, with a tier's instructions. */
typedef struct aes_ops {
    void (*encrypt)(const aes_key *enc, uint8_t *out, const uint8_t *in, size_t nblocks);
    /* One block in place; `dec` is the inverse schedule of `enc`. */
    void (*decrypt_block)(const aes_key *enc, const aes_key *dec, uint8_t block[AES_BLOCK]);
} aes_ops;

extern const aes_ops aes_portable, aes_aesni;

#endif
