/* SPDX-License-Identifier: Apache-2.0
 * SM4-GCM (RFC 8998, 3.1): its key, and the kernels of each tier (crypto/gcm/gcm.h). */
#ifndef CCMEM_SM4_GCM_H
#define CCMEM_SM4_GCM_H

#include "crypto/gcm/gcm.h"
#include "crypto/sm4/sm4.h"

typedef struct sm4_gcm_key {
    sm4_key enc;
    ghash_key hash;
} sm4_gcm_key;

extern const gcm_ops sm4_gcm_portable, sm4_gcm_aesni, sm4_gcm_vaes256, sm4_gcm_vaes512,
    sm4_gcm_gfni128, sm4_gcm_gfni256, sm4_gcm_gfni512;

/* Expands a key in constant time on every processor. */
void sm4_gcm_expand(sm4_gcm_key *out, const uint8_t key[SM4_KEY_SIZE]);

#endif
