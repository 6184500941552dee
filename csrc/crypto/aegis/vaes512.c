/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-128X2 with VAES on processors that have AVX-512: Intel from Ice Lake-SP, AMD from Zen 4.
 * The cipher has two lanes, so registers stay 256 bits wide; three-way logic in one instruction and
 * twice the registers are what AVX-512 gives it. Two pages at a time, in sixteen of these registers
 * or in eight of 512 bits, gained 7 to 15 % in L2 and lost up to as much from DRAM (Zen 4). */
#include "platform/cpu.h"

#if CCMEM_X86
#include "crypto/aegis/aegis.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes," TARGET_AVX512 ",vaes")))
#define SIMD_TERNARY
#include "simd/v256.h"

#define vcontext(lane, lanes) vwords_each(0, 0x0101, 0, 0x0100)

#define AEGIS_SPILLS 0 /* thirty-two registers hold all */
#define AEGIS_OPS aegis_vaes512
#define AEGIS_FUSED fused
static const aegis_fused_function fused[4];
#include "crypto/aegis/template.h"

#define FUSED_TARGET __attribute__((target("aes," TARGET_AVX512 ",vaes,fma,f16c")))
#define FUSED_LANES 16
#include "crypto/aegis/fused.h"
#endif
