/* SPDX-License-Identifier: Apache-2.0
 * Vector words of x86 on 256-bit registers: AVX2 with VAES and VPCLMULQDQ, with FMA and F16C for
 * floats. With SIMD_TERNARY defined three-way logic is one instruction, of AVX-512VL. See
 * simd/target.h. */
#ifndef CCMEM_SIMD_V256_H
#define CCMEM_SIMD_V256_H

#include <stddef.h>
#include <stdint.h>

#define V_BLOCKS 2
#include "simd/v128.h"

typedef __m256i VEC;

#define vload(p) _mm256_loadu_si256((const __m256i *)(p))
#define vstore(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define vstream(p, v) _mm256_stream_si256((__m256i *)(p), v)
#define vxor(a, b) _mm256_xor_si256(a, b)
#ifdef SIMD_TERNARY
#define vxor3(a, b, c) _mm256_ternarylogic_epi64(a, b, c, 0x96)
#define vandxor(a, b, c) _mm256_ternarylogic_epi64(a, b, c, 0x78)
#else
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vandxor(a, b, c) vxor(a, vand(b, c))
#endif
#define vand(a, b) _mm256_and_si256(a, b)
#define vadd64(a, b) _mm256_add_epi64(a, b)
#define vshl_bytes(v, n) _mm256_slli_si256(v, n)
#define vshr_bytes(v, n) _mm256_srli_si256(v, n)
#define vswap64(v) _mm256_shuffle_epi32(v, 0x4e)
#define vreverse(v) _mm256_shuffle_epi8(v, vlift(v128_byte_order()))
#define vnegative64(v) _mm256_cmpgt_epi64(_mm256_setzero_si256(), v)
#define vwords(hi, lo) _mm256_set_epi64x(hi, lo, hi, lo)
#define vwords_each(hi1, lo1, hi0, lo0) _mm256_set_epi64x(hi1, lo1, hi0, lo0)
#define vlow64(n) _mm256_set1_epi64x(n)
#define vclmul(a, b, which) _mm256_clmulepi64_epi128(a, b, which)
#define vaesenc(x, k) _mm256_aesenc_epi128(x, k)
#define vaesenclast(x, k) _mm256_aesenclast_epi128(x, k)
#define vaesdec(x, k) _mm256_aesdec_epi128(x, k)
#define vaesdeclast(x, k) _mm256_aesdeclast_epi128(x, k)
#define vlift(b) _mm256_broadcastsi128_si256(b)
#define vkey(p) vlift(v128_load_aligned(p))
#define vblock(v, i) ((i) ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v))
#define vstream_blocks(p, v)                                                                       \
    (v128_stream((v128 *)(p), vblock(v, 0)), v128_stream((v128 *)(p) + 1, vblock(v, 1)))
#define vfold(v) v128_xor(vblock(v, 0), vblock(v, 1))
#define vfirst(v) vblock(v, 0)
#define valone(b) _mm256_zextsi128_si256(b)

/* Functions: as macros they made GCC order the code for whole pages otherwise. */
static inline TARGET VEC vload_part(const uint8_t *p, size_t n) {
    return n == 2 ? vload(p) : _mm256_zextsi128_si256(v128_load(p));
}

static inline TARGET void vstore_part(uint8_t *p, VEC v, size_t n) {
    if (n == 2)
        vstore(p, v);
    else
        v128_store(p, vblock(v, 0));
}

/* ---- floats ---------------------------------------------------------------------------------- */

#define F_LANES 8
typedef __m256 fvec;

/* 16-bit and 32-bit numbers. */
#define vpin(v) __asm__("" : "+x"(v))
#define vall32(n) _mm256_set1_epi32(n)
#define vadd32(a, b) _mm256_add_epi32(a, b)
#define vmadd16(a, b) _mm256_madd_epi16(a, b)
#define vwiden8(p) _mm256_cvtepi8_epi16(v128_load(p))
#define vwiden8_pairs(p, q)                                                                        \
    _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(p)),                  \
                                           _mm_loadl_epi64((const __m128i *)(q))))
#define fints(v) _mm256_cvtepi32_ps(v)
#define fstore_short(p, v) v128_store(p, f8_shorts(v))

#define fpin(v) __asm__("" : "+x"(v))
#define fzero() _mm256_setzero_ps()
#define fload(p) _mm256_loadu_ps((const float *)(p))
#define fstore(p, v) _mm256_storeu_ps(p, v)
#define fload_aligned(p) _mm256_load_ps(p)
#define fstore_aligned(p, v) _mm256_store_ps(p, v)
#define fadd(a, b) _mm256_add_ps(a, b)
#define ffma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define fspread(p) _mm256_broadcast_ss(p)
#define ffloats(v) _mm256_castsi256_ps(v)
#define fhalves(v, i) _mm256_cvtph_ps(vblock(v, i))
#define fbfloats(v, i)                                                                             \
    ffloats((i) ? _mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000))                          \
                : _mm256_slli_epi32(v, 16))
/* Shifts instead of widening moves, which cross 128-bit lanes: of these Zen 3 has one a cycle, of
 * shifts two. */
#define fbytes(v, i)                                                                               \
    _mm256_cvtepi32_ps(_mm256_srai_epi32((i) == 3 ? (v) : _mm256_slli_epi32(v, 24 - 8 * (i)), 24))
#define fload_half(p) _mm256_cvtph_ps(v128_load(p))
#define fload_bfloat(p) ffloats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v128_load(p)), 16))
#define fload_byte(p)                                                                              \
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define ffold8(v) (v)
#define ffold8_most(v) (v)
#define fall(x) _mm256_set1_ps(x)
#define fsub(a, b) _mm256_sub_ps(a, b)
#define fmul(a, b) _mm256_mul_ps(a, b)
#define fdiv(a, b) _mm256_div_ps(a, b)
#define fmost(a, b) _mm256_max_ps(a, b)
#define fsize(v) _mm256_andnot_ps(fall(-0.0f), v)
#define fsigned(v, s) _mm256_or_ps(v, _mm256_and_ps(fall(-0.0f), s))
#define fshl(v, n) ffloats(_mm256_slli_epi32(_mm256_castps_si256(v), n))
#define fclear_less(v, a, b) _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), v)
#define flanes_below(n)                                                                            \
    _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define fload_some(p, n) _mm256_maskload_ps(p, flanes_below(n))
#define fstore_some(p, n, v) _mm256_maskstore_ps(p, flanes_below(n), v)
#define fsome(n, a, b) _mm256_blendv_ps(b, a, ffloats(flanes_below(n)))
#define fstore_half(p, v)                                                                          \
    v128_store(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define fstore_bfloat(p, v) f8_store_bfloats(p, v)
#define fstore_byte(p, v) _mm_storel_epi64((__m128i *)(void *)(p), f8_bytes(v))

#endif
