/* SPDX-License-Identifier: Apache-2.0
 * SM3 (GB/T 32905-2016), HMAC over it (RFC 2104, GB/T 15852.2) and the counter-mode key derivation
 * of SP 800-108r1 over that. Plain C for every tier: what is hashed is short. */
#ifndef CCMEM_SM3_H
#define CCMEM_SM3_H

#include "ccmem.h"

enum { SM3_SIZE = 32, SM3_BLOCK = 64 };

typedef struct sm3_state {
    uint32_t v[8];
    uint8_t block[SM3_BLOCK];
    uint64_t n; /* bytes so far */
} sm3_state;

void sm3_begin(sm3_state *s);
void sm3_add(sm3_state *s, const uint8_t *data, size_t n);
void sm3_end(sm3_state *s, uint8_t digest[SM3_SIZE]);

/* HMAC of n bytes under a key of at most SM3_BLOCK bytes. What it works with is wiped. */
void hmac_sm3(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t n,
              uint8_t tag[SM3_SIZE]);

/* Derives out_len bytes as kdf_counter_cmac() of crypto/mac/kdf.h does, with blocks of HMAC-SM3;
 * label and context are of at most KDF_FIELD_MAX bytes each. All intermediate values are wiped. */
void kdf_counter_sm3(const uint8_t *key, size_t key_len, const uint8_t *label, size_t label_len,
                     const uint8_t *context, size_t context_len, uint8_t *out, size_t out_len);

#endif
