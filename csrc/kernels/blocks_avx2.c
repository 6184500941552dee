/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products with AVX2 with FMA and F16C: AMD from Zen, Intel from Haswell. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/blocks_scale.h"
#include "kernels/int8_avx2.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2)))
#include "simd/b32.h"

#include "simd/f8.h"

#include "simd/v256.h"

#define PANEL_HEIGHT 4
#define PANEL_PACK int8_avx2_pack_16
#define SPREAD32(p) vall32((int)word32((const uint8_t *)(p)))
#define MUL32(a, b) _mm256_mullo_epi32(a, b)
#define SUB32(a, b) _mm256_sub_epi32(a, b)
#define SHL32(v, n) _mm256_slli_epi32(v, n)
#define FNMA(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define MADD8(u, s) _mm256_maddubs_epi16(u, s)
#define SIZE8(v) _mm256_abs_epi8(v)
#define SIGN8(v, s) _mm256_sign_epi8(v, s)
#define ADD16(a, b) _mm256_add_epi16(a, b)
#define BLOCKS_OPS blocks_avx2
#include "kernels/blocks_template.h"
#endif
