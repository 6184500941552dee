/* SPDX-License-Identifier: Apache-2.0
 * AES-CMAC (SP 800-38B), and the counter-mode key derivation of SP 800-108r1 over it or another
 * function. */
#ifndef CCMEM_KDF_H
#define CCMEM_KDF_H

#include "crypto/aes/aes.h"

/* Bytes; the first and the last are far beyond what subkeys need. */
enum { KDF_FIELD_MAX = 64, KDF_BLOCK_MAX = 32, KDF_OUT_MAX = 8160 };

/* CMAC of n bytes under an expanded key. */
void cmac(const aes_ops *ops, const aes_key *key, const uint8_t *msg, size_t n, uint8_t tag[16]);

/* A pseudo-random function of n bytes under a key, which wipes what it works with. */
typedef void kdf_prf(const void *key, const uint8_t *msg, size_t n, uint8_t *out);

/* kdf_counter_cmac() with another function, whose results have `size` <= KDF_BLOCK_MAX bytes. */
void kdf_counter(kdf_prf *prf, size_t size, const void *key, const uint8_t *label, size_t label_len,
                 const uint8_t *context, size_t context_len, uint8_t *out, size_t out_len);

/* Derives out_len <= KDF_OUT_MAX bytes from `key`, see ccmem_kdf(); label and context are of at
 * most KDF_FIELD_MAX bytes each. All intermediate values are wiped. */
void kdf_counter_cmac(const aes_ops *ops, const aes_key *key, const uint8_t *label,
                      size_t label_len, const uint8_t *context, size_t context_len, uint8_t *out,
                      size_t out_len);

#endif
