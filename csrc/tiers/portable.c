/* SPDX-License-Identifier: Apache-2.0
 * The tier of constant-time C, for any processor: the reference that the others are tested against,
 * and what they take where they have no kernels of their own. */
#include "crypto/aegis256/aegis256.h"
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "tiers/tiers.h"

static const tier_kernels rows[] = {
    {.aes = &aes_portable,
     .xts = &xts_portable,
     .aegis = &aegis_portable,
     .aegis256 = &aegis256_portable,
     .aes_gcm = &aes_gcm_portable,
     .sm4 = &sm4_portable,
     .sm4_gcm = &sm4_gcm_portable,
     .gemv = &gemv_portable,
     .gemm = &gemm_portable,
     .int8 = &int8_portable,
     .attention = &attention_portable,
     .blocks = &blocks_portable,
     .probe = &probe_portable},
    TIER_LAST,
};

const tier_descriptor tier_portable = {.name = "portable",
                                       .kernels = rows,
                                       .sizes = &tier_sizes_usual};
