/* SPDX-License-Identifier: Apache-2.0
 * AES-CMAC (SP 800-38B) and the counter-mode key derivation of SP 800-108r1 over it. */
#ifndef CCMEM_KDF_H
#define CCMEM_KDF_H

#include "crypto/aes/aes.h"

/* CMAC of n bytes under an expanded key. */
void cmac(ccmem_tier tier, const aes_key *key, const uint8_t *msg, size_t n, uint8_t tag[16]);

/* out_len <= 8160 bytes derived from `key`, see ccmem_kdf(); label and context at most 64 bytes
 * each. All intermediate values are wiped. */
void kdf_counter_cmac(ccmem_tier tier, const aes_key *key, const uint8_t *label, size_t label_len,
                      const uint8_t *context, size_t context_len, uint8_t *out, size_t out_len);

#endif
