/* SPDX-License-Identifier: Apache-2.0
 * AES-GCM with VAES and VPCLMULQDQ on 256-bit registers: AMD Zen 3, Intel Alder Lake and its
 * successors. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,avx2,vaes,vpclmulqdq")))
#include "simd/v256.h"

#define GCM_GROUP 8
#include "crypto/aes_gcm/rounds.h"

#define GCM_GROUPS "crypto/aes_gcm/group_vaes256.h"
#define GCM_OPS aes_gcm_vaes256
#include "crypto/gcm/template.h"
#endif
