/* SPDX-License-Identifier: Apache-2.0
 * AES-GCM (NIST SP 800-38D): its key, and the kernels of each tier (crypto/gcm/gcm.h). */
#ifndef CCMEM_AES_GCM_H
#define CCMEM_AES_GCM_H

#include "crypto/aes/aes.h"
#include "crypto/gcm/gcm.h"

typedef struct aes_gcm_key {
    aes_key enc;
    ghash_key hash;
} aes_gcm_key;

/* Pages are of AES-256; messages of a key of any length. */
extern const gcm_ops aes_gcm_portable, aes_gcm_aesni, aes_gcm_vaes256, aes_gcm_vaes512;

/* Expands a key of 16, 24 or 32 bytes, in constant time on every processor. */
void aes_gcm_expand(aes_gcm_key *out, const uint8_t *key, size_t key_len);

#endif
