/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-256X2 with VAES on processors that have AVX-512: both lanes in one 256-bit register, of
 * which there are thirty-two. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes," TARGET_AVX512 ",vaes")))
#define SIMD_TERNARY
#include "simd/v256.h"

#define vcontext(lane, lanes) vwords_each(0, 0x0101, 0, 0x0100)

#define AEGIS_SPILLS 0
#define AEGIS_OPS aegis256_vaes512
#include "crypto/aegis256/template.h"
#endif
