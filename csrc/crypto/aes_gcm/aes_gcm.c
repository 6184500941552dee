/* SPDX-License-Identifier: Apache-2.0
 * The key of AES-GCM, by plain constant-time C for every tier, as the schedule of AES is. */
#include "crypto/aes_gcm/aes_gcm.h"

#include "memory/secret.h"

void aes_gcm_expand(aes_gcm_key *out, const uint8_t *key, size_t key_len) {
    uint8_t h[AES_BLOCK] = {0};

    aes_expand(&out->enc, key, key_len);
    aes_portable.encrypt(&out->enc, h, h, 1);
    ghash_expand(&out->hash, h);
    ccmem_wipe(h, sizeof h);
}
