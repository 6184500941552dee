/* SPDX-License-Identifier: Apache-2.0
 * AES-GCM with VAES and VPCLMULQDQ on 512-bit registers: Intel from Ice Lake-SP, AMD from Zen 4. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul," TARGET_AVX512 ",vaes,vpclmulqdq")))
#include "simd/v512.h"

#define GCM_GROUP 4
#include "crypto/aes_gcm/rounds.h"

#define GCM_OPS aes_gcm_vaes512
#include "crypto/gcm/template.h"
#endif
