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
#define v128_shl_bytes(v, n) _mm_slli_si128(v, n)
#define v128_shr_bytes(v, n) _mm_srli_si128(v, n)
#define v128_swap64(v) _mm_shuffle_epi32(v, 0x4e)
#define v128_negative64(v) _mm_cmpgt_epi64(_mm_setzero_si128(), v)
#define v128_clmul(a, b, which) _mm_clmulepi64_si128(a, b, which)
#define v128_aesenc(x, k) _mm_aesenc_si128(x, k)
#define v128_aesenclast(x, k) _mm_aesenclast_si128(x, k)
#define v128_aesdec(x, k) _mm_aesdec_si128(x, k)
#define v128_aesdeclast(x, k) _mm_aesdeclast_si128(x, k)
#define v128_same(a, b) (_mm_movemask_epi8(_mm_cmpeq_epi8(a, b)) == 0xffff)

#ifndef V_BLOCKS
#define V_BLOCKS 1
typedef v128 VEC;

#define vload(p) v128_load(p)
#define vstore(p, v) v128_store(p, v)
#define vstream(p, v) v128_stream(p, v)
#define vload_part(p, n) vload(p)
#define vstore_part(p, v, n) vstore(p, v)
#define vxor(a, b) v128_xor(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vand(a, b) v128_and(a, b)
#define vandxor(a, b, c) vxor(a, vand(b, c))
#define vadd64(a, b) v128_add64(a, b)
#define vshl_bytes(v, n) v128_shl_bytes(v, n)
#define vshr_bytes(v, n) v128_shr_bytes(v, n)
#define vswap64(v) v128_swap64(v)
#define vnegative64(v) v128_negative64(v)
#define vwords(hi, lo) v128_words(hi, lo)
#define vlow64(n) v128_low32(n)
#define vclmul(a, b, which) v128_clmul(a, b, which)
#define vaesenc(x, k) v128_aesenc(x, k)
#define vaesenclast(x, k) v128_aesenclast(x, k)
#define vaesdec(x, k) v128_aesdec(x, k)
#define vaesdeclast(x, k) v128_aesdeclast(x, k)
#define vlift(b) (b)
#define vkey(p) v128_load_aligned(p)
#define vstream_blocks(p, v) vstream(p, v)
#define vfold(v) (v)
#endif

#endif
