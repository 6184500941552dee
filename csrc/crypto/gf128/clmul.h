/* SPDX-License-Identifier: Apache-2.0
 * Arithmetic in GF(2^128) by carry-less products, for tiers with PCLMULQDQ. Included by a tier file
 * after it has defined TARGET. */
#include "crypto/gf128/gf128.h"

#define INLINE static inline __attribute__((always_inline)) TARGET

/* t x^64: the low half moves up, the high half comes back times the remainder. */
INLINE __m128i gf_times_x64(__m128i t) {
    __m128i fold = _mm_clmulepi64_si128(t, _mm_cvtsi32_si128(GF_REMAINDER), 0x01);
    return _mm_xor_si128(_mm_slli_si128(t, 8), fold);
}

/* The full product of two elements. */
INLINE __m128i gf_times(__m128i a, __m128i b) {
    __m128i c = _mm_cvtsi32_si128(GF_REMAINDER);
    __m128i mid = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x10), _mm_clmulepi64_si128(a, b, 0x01));
    __m128i high = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x11), _mm_srli_si128(mid, 8));
    __m128i low = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x00), _mm_slli_si128(mid, 8));
    __m128i fold = _mm_clmulepi64_si128(high, c, 0x01);
    high = _mm_xor_si128(high, _mm_srli_si128(fold, 8));
    low = _mm_xor_si128(low, _mm_slli_si128(fold, 8));
    return _mm_xor_si128(low, _mm_clmulepi64_si128(high, c, 0x00));
}
