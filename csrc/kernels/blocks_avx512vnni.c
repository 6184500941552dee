/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products with AVX512-VNNI on 256-bit registers: Intel from Ice Lake-SP, AMD from
 * Zen 4, which does no more a cycle on longer ones. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/blocks_scale.h"
#include "kernels/int8_avx2.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",avx512vnni,fma,f16c")))
#define B32_VNNI _epi32
#include "simd/b32.h"

#include "simd/f8.h"

#include "simd/v512.h"

#define PANEL_HEIGHT 12
#define PANEL_PACK int8_avx2_pack_32
#define SPREAD32(p) vall32((int)word32((const uint8_t *)(p)))
#define MUL32(a, b) _mm512_mullo_epi32(a, b)
#define SUB32(a, b) _mm512_sub_epi32(a, b)
#define SHL32(v, n) _mm512_slli_epi32(v, (unsigned)(n))
#define FNMA(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define DOT8(c, u, s) _mm512_dpbusd_epi32(c, u, s)
#define DOT16(c, a, b) _mm512_dpwssd_epi32(c, a, b)
#define BLOCKS_OPS blocks_avx512vnni
#include "kernels/blocks_template.h"
#endif
