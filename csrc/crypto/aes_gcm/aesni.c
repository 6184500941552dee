/* SPDX-License-Identifier: Apache-2.0
 * AES-GCM with AES-NI and PCLMULQDQ on 128-bit registers: Intel from Westmere to Skylake-X, AMD
 * from Bulldozer to Zen 2. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,sse4.2")))
#include "simd/v128.h"

#define GCM_GROUP 8
#include "crypto/aes_gcm/rounds.h"

#define GCM_OPS aes_gcm_aesni
#include "crypto/gcm/template.h"
#endif
