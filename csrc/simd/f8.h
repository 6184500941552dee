/* SPDX-License-Identifier: Apache-2.0
 * Words of x86 for eight floats and for four: what becomes of sums on their way to memory, and
 * transposition. AVX2. A tier for another processor gives the same:
 *
 *   f8 f4 f8_ints                    the types; eight 32-bit integers
 *   f8_load f8_store f4_load f4_store  any address
 *   f8_lanes_below(n)                a mask of the first n lanes
 *   f8_load_some f8_store_some       the lanes of a mask; memory of others is not touched
 *   f8_add f8_mul f4_add f4_mul
 *   f8_all(x) f8_spread(v, i)        x in each lane; in each half its number i, a constant
 *   f8_of_four(p)                    the four at p in both halves
 *   f8_fma f8_fnma(a, b, c)          a * b + c, c - a * b, rounded once
 *   f4_fma f4_fnma(a, b, c)          the same
 *   f8_low f8_high(v) f8_of4(v)      four of eight; four as eight, the others anything
 *   f8_join(p, q)                    four at p, then four at q
 *   f8_unpack_low f8_unpack_high     in each half: a0 b0 a1 b1; a2 b2 a3 b3
 *   f8_pairs_low f8_pairs_high       in each half: a0 a1 b0 b1; a2 a3 b2 b3
 *   f8_store_bfloats f4_store_bfloats(p, v)  the nearest bfloat16, of two the even one
 *   f8_shorts f8_bytes(v)            the nearest whole numbers as 16 bits; as bytes, first of all
 *   f4_store_low f4_store_high       two of four
 *   f4_two(x, y)                     x x y y
 *   f8_total(v) f8_highest(v)        the sum, the highest: halves on halves */
#ifndef CCMEM_SIMD_F8_H
#define CCMEM_SIMD_F8_H

#include <immintrin.h>

#include "simd/target.h"

typedef __m256 f8;
typedef __m128 f4;
typedef __m256i f8_mask;

#define f8_load(p) _mm256_loadu_ps((const float *)(const void *)(p))
#define f8_store(p, v) _mm256_storeu_ps(p, v)
#define f4_load(p) _mm_loadu_ps((const float *)(const void *)(p))
#define f4_store(p, v) _mm_storeu_ps(p, v)
#define f8_lanes_below(n)                                                                          \
    _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define f8_load_some(p, mask) _mm256_maskload_ps(p, mask)
#define f8_store_some(p, mask, v) _mm256_maskstore_ps(p, mask, v)
#define f8_add(a, b) _mm256_add_ps(a, b)
#define f8_mul(a, b) _mm256_mul_ps(a, b)
#define f8_all(x) _mm256_set1_ps(x)
#define f8_spread(v, i) _mm256_permute_ps(v, (i) * 0x55)
#define f8_of_four(p) _mm256_broadcast_ps((const f4 *)(const void *)(p))
#define f8_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define f8_fnma(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define f4_fma(a, b, c) _mm_fmadd_ps(a, b, c)
#define f4_fnma(a, b, c) _mm_fnmadd_ps(a, b, c)
#define f4_add(a, b) _mm_add_ps(a, b)
#define f4_mul(a, b) _mm_mul_ps(a, b)
#define f8_low(v) _mm256_castps256_ps128(v)
#define f8_high(v) _mm256_extractf128_ps(v, 1)
#define f8_of4(v) _mm256_castps128_ps256(v)
#define f8_join(p, q) _mm256_insertf128_ps(f8_of4(f4_load(p)), f4_load(q), 1)
#define f8_unpack_low(a, b) _mm256_unpacklo_ps(a, b)
#define f8_unpack_high(a, b) _mm256_unpackhi_ps(a, b)
#define f8_pairs_low(a, b) _mm256_shuffle_ps(a, b, 0x44)
#define f8_pairs_high(a, b) _mm256_shuffle_ps(a, b, 0xee)
#define f8_store_bfloats(p, v) _mm_storeu_si128((__m128i *)(void *)(p), f8_bfloats(v))
#define f4_store_bfloats(p, v) _mm_storel_epi64((__m128i *)(void *)(p), f8_bfloats(f8_of4(v)))

#define f4_two(x, y) _mm_setr_ps(x, x, y, y)
#define f4_store_low(p, v) _mm_storel_pi((__m64 *)(void *)(p), v)
#define f4_store_high(p, v) _mm_storeh_pi((__m64 *)(void *)(p), v)

/* As bfloat16_of() in simd/scalar.h rounds them. */
INLINE __m128i f8_bfloats(f8 v) {
    const __m256i u = _mm256_castps_si256(v), upper = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i near =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff)),
                          16);
    const __m256i half = _mm256_blendv_epi8(near, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)),
                                            _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08));
}

INLINE __m128i f8_shorts(f8 v) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}

INLINE __m128i f8_bytes(f8 v) {
    const __m128i shorts = f8_shorts(v);
    return _mm_packs_epi16(shorts, shorts);
}

INLINE float f8_total(f8 v) {
    f4 t = f4_add(f8_low(v), f8_high(v));
    t = f4_add(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

INLINE float f8_highest(f8 v) {
    f4 t = _mm_max_ps(f8_low(v), f8_high(v));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

#endif
