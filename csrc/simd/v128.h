/* SPDX-License-Identifier: Apache-2.0
 * Vector words of x86 for one block; and, unless a wider file includes this one, for vectors of one
 * block. See simd/target.h. */
#ifndef CCMEM_SIMD_V128_H
#define CCMEM_SIMD_V128_H

#include <immintrin.h>

#include "simd/target.h"

#define SIMD_REGISTER "x"
#define simd_fence() _mm_sfence()

typedef __m128i v128;

#define v128_load(p) _mm_loadu_si128((const __m128i *)(p))
#define v128_store(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define v128_load_aligned(p) _mm_load_si128((const __m128i *)(p))
#define v128_store_aligned(p, v) _mm_store_si128((__m128i *)(p), v)
#define v128_stream(p, v) _mm_stream_si128((__m128i *)(p), v)
#define v128_zero() _mm_setzero_si128()
#define v128_words(hi, lo) _mm_set_epi64x(hi, lo)
#define v128_low32(n) _mm_cvtsi32_si128(n)
#define v128_get64(v, i) ((uint64_t)_mm_extract_epi64(v, i))
#define v128_xor(a, b) _mm_xor_si128(a, b)
#define v128_and(a, b) _mm_and_si128(a, b)
#define v128_add64(a, b) _mm_add_epi64(a, b)
#define v128_add32(a, b) _mm_add_epi32(a, b)
#define v128_shl_bytes(v, n) _mm_slli_si128(v, n)
#define v128_shr_bytes(v, n) _mm_srli_si128(v, n)
#define v128_swap64(v) _mm_shuffle_epi32(v, 0x4e)
#define v128_byte_order() _mm_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f)
#define v128_reverse(v) _mm_shuffle_epi8(v, v128_byte_order())
#define v128_negative64(v) _mm_cmpgt_epi64(_mm_setzero_si128(), v)
#define v128_clmul(a, b, which) _mm_clmulepi64_si128(a, b, which)
#define v128_aesenc(x, k) _mm_aesenc_si128(x, k)
#define v128_aesenclast(x, k) _mm_aesenclast_si128(x, k)
#define v128_aesdec(x, k) _mm_aesdec_si128(x, k)
#define v128_aesdeclast(x, k) _mm_aesdeclast_si128(x, k)
#define v128_same(a, b) (_mm_movemask_epi8(_mm_cmpeq_epi8(a, b)) == 0xffff)

#ifndef V_BLOCKS
#include "simd/v_one.h"
#endif

#endif
