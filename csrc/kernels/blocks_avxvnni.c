/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products with AVX-VNNI: Intel from Alder Lake, AMD from Zen 5. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/blocks_scale.h"
#include "kernels/int8_avx2.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2 ",avxvnni")))
#define B32_VNNI _avx_epi32
#include "simd/b32.h"

#include "simd/f8.h"

#include "simd/v256.h"

#define PANEL_HEIGHT 6
#define PANEL_PACK int8_avx2_pack_16
#define SPREAD32(p) vall32((int)word32((const uint8_t *)(p)))
#define MUL32(a, b) _mm256_mullo_epi32(a, b)
#define SUB32(a, b) _mm256_sub_epi32(a, b)
#define SHL32(v, n) _mm256_slli_epi32(v, n)
#define FNMA(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define DOT8(c, u, s) _mm256_dpbusd_avx_epi32(c, u, s)
#define DOT16(c, a, b) _mm256_dpwssd_avx_epi32(c, a, b)
#define BLOCKS_OPS blocks_avxvnni
#include "kernels/blocks_template.h"
#endif
