/* SPDX-License-Identifier: Apache-2.0
 * SM4-GCM with VAES and VPCLMULQDQ on 256-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,avx2,vaes,vpclmulqdq")))
#include "simd/v256.h"

#include "simd/bytes.h"

#define SM4_SETS 4
#include "crypto/sm4/round_aes.h"

#include "crypto/sm4_gcm/rounds.h"

#define GCM_OPS sm4_gcm_vaes256
#include "crypto/gcm/template.h"
#endif
