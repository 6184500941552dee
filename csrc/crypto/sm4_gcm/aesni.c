/* SPDX-License-Identifier: Apache-2.0
 * SM4-GCM with AES-NI and PCLMULQDQ on 128-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,sse4.2")))
#include "simd/v128.h"

#include "simd/bytes.h"

#define SM4_SETS 4
#include "crypto/sm4/round_aes.h"

#include "crypto/sm4_gcm/rounds.h"

#define GCM_OPS sm4_gcm_aesni
#include "crypto/gcm/template.h"
#endif
