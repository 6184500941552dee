/* SPDX-License-Identifier: Apache-2.0
 * SM4-GCM with VAES and VPCLMULQDQ on 512-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"
#include "simd/target.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",pclmul,vpclmulqdq,aes,vaes")))
#include "simd/v512.h"

#include "simd/bytes.h"

#define SM4_SETS 4
#include "crypto/sm4/round_aes.h"

#include "crypto/sm4_gcm/rounds.h"

#define GCM_OPS sm4_gcm_vaes512
#include "crypto/gcm/template.h"
#endif
