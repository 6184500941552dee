/* SPDX-License-Identifier: Apache-2.0
 * Vector words of x86 on 512-bit registers: AVX-512 F, BW, DQ and VL with VAES and VPCLMULQDQ. See
 * simd/target.h. */
#ifndef CCMEM_SIMD_V512_H
#define CCMEM_SIMD_V512_H

#define V_BLOCKS 4
#include "simd/v128.h"

typedef __m512i VEC;

#define vload(p) _mm512_loadu_si512(p)
#define vstore(p, v) _mm512_storeu_si512(p, v)
#define vstream(p, v) _mm512_stream_si512((__m512i *)(p), v)
#define vload_part(p, n) _mm512_maskz_loadu_epi64((__mmask8)((1u << (2 * (n))) - 1), p)
#define vstore_part(p, v, n) _mm512_mask_storeu_epi64(p, (__mmask8)((1u << (2 * (n))) - 1), v)
#define vxor(a, b) _mm512_xor_si512(a, b)
#define vxor3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define vshl_bytes(v, n) _mm512_bslli_epi128(v, n)
#define vshr_bytes(v, n) _mm512_bsrli_epi128(v, n)
#define vlow64(n) _mm512_set1_epi64(n)
#define vreverse(v) _mm512_shuffle_epi8(v, vlift(v128_byte_order()))
#define vclmul(a, b, which) _mm512_clmulepi64_epi128(a, b, which)
#define vaesenc(x, k) _mm512_aesenc_epi128(x, k)
#define vaesenclast(x, k) _mm512_aesenclast_epi128(x, k)
#define vaesdec(x, k) _mm512_aesdec_epi128(x, k)
#define vaesdeclast(x, k) _mm512_aesdeclast_epi128(x, k)
#define vlift(b) _mm512_broadcast_i32x4(b)
#define vkey(p) vlift(v128_load_aligned(p))
#define vfirst(v) _mm512_castsi512_si128(v)
#define valone(b) _mm512_zextsi128_si512(b)

/* Two halves, then two quarters. */
static inline TARGET v128 vfold(VEC v) {
    __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return v128_xor(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* ---- floats ---------------------------------------------------------------------------------- */

#define F_LANES 16
typedef __m512 fvec;

/* 16-bit and 32-bit numbers. */
#define vpin(v) __asm__("" : "+v"(v))
#define vall32(n) _mm512_set1_epi32(n)
#define vadd32(a, b) _mm512_add_epi32(a, b)
#define vmadd16(a, b) _mm512_madd_epi16(a, b)
#define vwiden8(p) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(p)))
#define vwiden8_pairs(p, q)                                                                        \
    _mm512_cvtepi8_epi16(_mm256_set_m128i(_mm_unpackhi_epi8(v128_load(p), v128_load(q)),           \
                                          _mm_unpacklo_epi8(v128_load(p), v128_load(q))))
#define fints(v) _mm512_cvtepi32_ps(v)
#define fstore_short(p, v)                                                                         \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)))

#define fpin(v) __asm__("" : "+v"(v))
#define fzero() _mm512_setzero_ps()
#define fload(p) _mm512_loadu_ps(p)
#define fstore(p, v) _mm512_storeu_ps(p, v)
#define fload_aligned(p) _mm512_load_ps(p)
#define fstore_aligned(p, v) _mm512_store_ps(p, v)
#define fadd(a, b) _mm512_add_ps(a, b)
#define ffma(a, b, c) _mm512_fmadd_ps(a, b, c)
/* a and b as pairs of bfloat16: both products added to c. AVX-512 BF16. */
#define ffma_bfloats(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define fspread(p) _mm512_set1_ps(*(p))
#define ffloats(v) _mm512_castsi512_ps(v)
#define fhalves(v, i)                                                                              \
    _mm512_cvtph_ps((i) ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v))
#define fbfloats(v, i)                                                                             \
    ffloats((i) ? _mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000))                          \
                : _mm512_slli_epi32(v, 16))
#define fbytes(v, i)                                                                               \
    _mm512_cvtepi32_ps(                                                                            \
        _mm512_srai_epi32((i) == 3 ? (v) : _mm512_slli_epi32(v, (unsigned)(24 - 8 * (i))), 24))
#define fload_half(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define fload_bfloat(p)                                                                            \
    ffloats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define fload_byte(p)                                                                              \
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define ffold8(v) _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))
#define ffold8_most(v) _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))
#define fall(x) _mm512_set1_ps(x)
#define fsub(a, b) _mm512_sub_ps(a, b)
#define fmul(a, b) _mm512_mul_ps(a, b)
#define fdiv(a, b) _mm512_div_ps(a, b)
#define fmost(a, b) _mm512_max_ps(a, b)
#define fsize(v) _mm512_andnot_ps(fall(-0.0f), v)
#define fsigned(v, s) _mm512_or_ps(v, _mm512_and_ps(fall(-0.0f), s))
#define fshl(v, n) ffloats(_mm512_slli_epi32(_mm512_castps_si512(v), n))
#define fclear_less(v, a, b) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), v)
#define flanes_below(n) ((__mmask16)((1u << (n)) - 1)) /* n <= F_LANES */
#define fload_some(p, n) _mm512_maskz_loadu_ps(flanes_below(n), p)
#define fstore_some(p, n, v) _mm512_mask_storeu_ps(p, flanes_below(n), v)
#define fsome(n, a, b) _mm512_mask_blend_ps(flanes_below(n), b, a)
#define fstore_half(p, v)                                                                          \
    _mm256_storeu_si256((__m256i *)(p),                                                            \
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define fstore_bfloat(p, v)                                                                        \
    (f8_store_bfloats(p, _mm512_castps512_ps256(v)),                                               \
     f8_store_bfloats((p) + 8, _mm512_extractf32x8_ps(v, 1)))
#define fstore_byte(p, v) v128_store(p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)))

#endif
