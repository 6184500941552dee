/* SPDX-License-Identifier: Apache-2.0
 * SM4-GCM of the portable tier: SM4 on bit planes, and GHASH by products of integers. */
#include "crypto/sm4_gcm/sm4_gcm.h"

#define GCM_KEY sm4_gcm_key
#define GCM_WIDTH 32
#define gcm_encrypt(key, out, in) sm4_portable.blocks(&(key)->enc, 0, out, in, GCM_WIDTH)
#define GCM_OPS sm4_gcm_portable
#include "crypto/gcm/portable.h"
