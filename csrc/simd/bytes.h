/* SPDX-License-Identifier: Apache-2.0
 * More vector words of x86, for ciphers on bytes and 32-bit words; included after the words of a
 * width (simd/target.h), whatever that is. All work in each block of 16 bytes by itself:
 *   vand128(a, b)                 logic, also where the width's own file has no such word
 *   vshuffle(v, at)               byte at[i] of v as byte i, 0 where at[i] has its top bit set
 *   vshr32(v, n)                  32-bit words shifted to the right
 *   vlow32x2 vhigh32x2 (a, b)     the two lower, or upper, 32-bit words of a and b in turn
 *   vlow64x2 vhigh64x2 (a, b)     the lower, or upper, 64-bit words
 *   vword(p) vall64(n)            the 32-bit word at p, or a number of 64 bits, in all places
 *   vaffine vinverse (v, m, c)    of GFNI: m times each byte, or its inverse, plus c */
#ifndef CCMEM_SIMD_BYTES_H
#define CCMEM_SIMD_BYTES_H

#include <string.h>

#include "simd/target.h"

INLINE int word_at(const uint8_t p[4]) {
    int word;
    memcpy(&word, p, sizeof word);
    return word;
}

#if V_BLOCKS == 1
#define VWORD(operation) _mm_##operation
#define vand128(a, b) _mm_and_si128(a, b)
#define vword(p) _mm_set1_epi32(word_at(p))
#define vall64(n) _mm_set1_epi64x((int64_t)(n))
#elif V_BLOCKS == 2
#define VWORD(operation) _mm256_##operation
#define vand128(a, b) _mm256_and_si256(a, b)
#define vword(p) _mm256_set1_epi32(word_at(p))
#define vall64(n) _mm256_set1_epi64x((int64_t)(n))
#else
#define VWORD(operation) _mm512_##operation
#define vand128(a, b) _mm512_and_si512(a, b)
#define vword(p) _mm512_set1_epi32(word_at(p))
#define vall64(n) _mm512_set1_epi64((int64_t)(n))
#endif

#define vshuffle(v, at) VWORD(shuffle_epi8)(v, at)
#define vshr32(v, n) VWORD(srli_epi32)(v, n)
#define vlow32x2(a, b) VWORD(unpacklo_epi32)(a, b)
#define vhigh32x2(a, b) VWORD(unpackhi_epi32)(a, b)
#define vlow64x2(a, b) VWORD(unpacklo_epi64)(a, b)
#define vhigh64x2(a, b) VWORD(unpackhi_epi64)(a, b)
#define vaffine(v, m, c) VWORD(gf2p8affine_epi64_epi8)(v, vall64(m), c)
#define vinverse(v, m, c) VWORD(gf2p8affineinv_epi64_epi8)(v, vall64(m), c)

#endif
