/* SPDX-License-Identifier: Apache-2.0
 * Words of x86 for vectors of 32 bytes as small whole numbers, and their products. AVX2. Before it,
 * a tier may define B32_VNNI to _avx_epi32 (AVX-VNNI) or _epi32 (AVX512-VNNI and VL), for
 * sums of products in one instruction. A tier for another processor gives the same:
 *
 *   b32 b16                          the types: 32 bytes, and 16
 *   b32_load b32_load_aligned b32_store_aligned b32_zero
 *   b32_twice(p)                     the 16 bytes at p in both halves
 *   b32_all8 b32_all16 b32_all32     a number in each lane of so many bits
 *   b32_and b32_or b32_xor b32_andnot(a, b)  the last: b without the bits of a
 *   b32_same8(a, b)                  all ones in bytes that are equal
 *   b32_shl16 b32_shr16(v, n)        16-bit lanes, by a number of bits
 *   b32_shr_each(v, n)               32-bit lanes, each by its own
 *   b32_choose(t, i)                 in each half: byte number i of t, for indices below 16
 *   b32_size8(v) b32_sign8(v, s)     |v|, -128 as 128 unsigned; v with its sign turned where s < 0,
 *                                    0 where s is
 *   b32_add32 b32_sub32 b32_mul32 b32_shl32 b32_madd16  the last: products of 16-bit lanes, those
 *                                    of each pair added
 *   b32_pairs32(a, b)                in each half: sums of a's pairs of 32-bit lanes, then of b's
 *   b32_low b32_high(v)              halves, as b16
 *   b32_outer b32_inner(a, b)        a's lower and b's upper half; the others, exchanged
 *   b32_madd8(u, s)                  unsigned times signed bytes, those of each pair added: 16 bits
 *                                    that saturate
 *   b32_dot8(c, u, s)                unsigned times signed bytes, those of four added to a 32-bit
 *                                    lane of c; without VNNI pairs saturate
 *   b32_dot16(c, a, b)               c + b32_madd16(a, b)
 *   b32_widen8(v) b32_widen_u8(v)    16 bytes, of b16, as 16-bit lanes, signed and unsigned
 *   b32_widen_u16(p)                 eight unsigned 16-bit numbers at p as 32-bit lanes
 *   f8_of_ints(v)                    32-bit lanes as floats */
#ifndef CCMEM_SIMD_B32_H
#define CCMEM_SIMD_B32_H

#include <immintrin.h>

#include "simd/target.h"

typedef __m256i b32;
typedef __m128i b16;

#define b32_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define b32_load_aligned(p) _mm256_load_si256((const __m256i *)(const void *)(p))
#define b32_store_aligned(p, v) _mm256_store_si256((__m256i *)(void *)(p), v)
#define b32_twice(p) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p)))
#define b32_all8(n) _mm256_set1_epi8((char)(n))
#define b32_all16(n) _mm256_set1_epi16((short)(n))
#define b32_all32(n) _mm256_set1_epi32((int)(n))
#define b32_zero() _mm256_setzero_si256()
#define b32_and(a, b) _mm256_and_si256(a, b)
#define b32_or(a, b) _mm256_or_si256(a, b)
#define b32_xor(a, b) _mm256_xor_si256(a, b)
#define b32_andnot(a, b) _mm256_andnot_si256(a, b)
#define b32_same8(a, b) _mm256_cmpeq_epi8(a, b)
#define b32_shl16(v, n) _mm256_slli_epi16(v, n)
#define b32_shr16(v, n) _mm256_srli_epi16(v, n)
#define b32_shr_each(v, n) _mm256_srlv_epi32(v, n)
#define b32_choose(t, i) _mm256_shuffle_epi8(t, i)
#define b32_size8(v) _mm256_abs_epi8(v)
#define b32_sign8(v, s) _mm256_sign_epi8(v, s)
#define b32_add32(a, b) _mm256_add_epi32(a, b)
#define b32_sub32(a, b) _mm256_sub_epi32(a, b)
#define b32_mul32(a, b) _mm256_mullo_epi32(a, b)
#define b32_shl32(v, n) _mm256_slli_epi32(v, n)
#define b32_madd16(a, b) _mm256_madd_epi16(a, b)
#define b32_low(v) _mm256_castsi256_si128(v)
#define b32_high(v) _mm256_extracti128_si256(v, 1)
#define b32_outer(a, b) _mm256_blend_epi32(a, b, 0xf0)
#define b32_inner(a, b) _mm256_permute2x128_si256(a, b, 0x21)
#define b32_madd8(u, s) _mm256_maddubs_epi16(u, s)
#ifdef B32_VNNI
#define B32_WORD(name, type) B32_WORD_(name, type)
#define B32_WORD_(name, type) name##type
#define b32_dot8(c, u, s) B32_WORD(_mm256_dpbusd, B32_VNNI)(c, u, s)
#define b32_dot16(c, a, b) B32_WORD(_mm256_dpwssd, B32_VNNI)(c, a, b)
#else
#define b32_dot8(c, u, s) b32_add32(c, b32_madd16(b32_madd8(u, s), b32_all16(1)))
#define b32_dot16(c, a, b) b32_add32(c, b32_madd16(a, b))
#endif
#define b32_widen8(v) _mm256_cvtepi8_epi16(v)
#define b32_widen_u8(v) _mm256_cvtepu8_epi16(v)

#define b32_widen_u16(p) _mm256_cvtepu16_epi32(_mm_loadu_si128((const b16 *)(const void *)(p)))

#define f8_of_ints(v) _mm256_cvtepi32_ps(v)

/* Zen 3 takes two cycles for a VPHADDD, and one for this. */
INLINE b32 b32_pairs32(b32 a, b32 b) {
    const __m256 p = _mm256_castsi256_ps(a), q = _mm256_castsi256_ps(b);
    return b32_add32(_mm256_castps_si256(_mm256_shuffle_ps(p, q, 0x88)),
                     _mm256_castps_si256(_mm256_shuffle_ps(p, q, 0xdd)));
}

#endif
