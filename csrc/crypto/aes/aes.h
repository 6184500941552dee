/* SPDX-License-Identifier: Apache-2.0
 * AES (FIPS 197): key schedules and plain block encryption, per tier. */
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

/* Encrypts n independent blocks (ECB), in place or to a non-overlapping `out`, with `tier`'s
 * instructions; the tier must be usable. */
void aes_encrypt_blocks(ccmem_tier tier, const aes_key *enc, uint8_t *out, const uint8_t *in,
                        size_t nblocks);

#endif
