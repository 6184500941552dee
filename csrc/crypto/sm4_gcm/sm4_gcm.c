/* SPDX-License-Identifier: Apache-2.0
 * The key of SM4-GCM, by plain constant-time C for every tier, as the schedule of SM4 is. */
#include "crypto/sm4_gcm/sm4_gcm.h"

#include "memory/secret.h"

void sm4_gcm_expand(sm4_gcm_key *out, const uint8_t key[SM4_KEY_SIZE]) {
    uint8_t h[SM4_BLOCK] = {0};

    sm4_expand(&out->enc, key);
    sm4_portable.blocks(&out->enc, 0, h, h, 1);
    ghash_expand(&out->hash, h);
    ccmem_wipe(h, sizeof h);
}
