/* SPDX-License-Identifier: Apache-2.0
 * AES-GCM of the portable tier: bitsliced AES, and GHASH by products of integers. */
#include "crypto/aes/bitslice.h"
#include "crypto/aes_gcm/aes_gcm.h"

#define GCM_KEY aes_gcm_key
#define GCM_WIDTH BS_BLOCKS
#define gcm_encrypt(key, out, in) bs_encrypt8(&(key)->enc, out, in)
#define GCM_OPS aes_gcm_portable
#include "crypto/gcm/portable.h"
