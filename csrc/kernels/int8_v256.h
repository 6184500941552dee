/* SPDX-License-Identifier: Apache-2.0
 * The words of kernels/int8_template.h on 256-bit registers. */
#include <immintrin.h>
#include <string.h>

#include "simd/target.h"

typedef __m256i VEC;

#define VBYTES 32
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define ZERO() _mm256_setzero_si256()
#define ADD(a, b) _mm256_add_epi32(a, b)

INLINE VEC spread(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}
#define SPREAD(p) spread(p)

INLINE __m128i totals(const VEC v[4]) {
    const VEC t = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
}
#define TOTALS(v) totals(v)
