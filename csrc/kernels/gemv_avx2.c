/* SPDX-License-Identifier: Apache-2.0
 * Products with AVX2, FMA and F16C: AMD from Zen, Intel from Haswell. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/gemv.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
typedef __m256 VEC;

#define vzero() _mm256_setzero_ps()
#define vload(p) _mm256_load_ps(p)
#define vstore(p, v) _mm256_store_ps(p, v)
#define vadd(a, b) _mm256_add_ps(a, b)
#define vfma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vf32(p) _mm256_loadu_ps((const float *)(p))
#define vf16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))

static inline __attribute__((always_inline)) TARGET VEC vbf16(const uint8_t *p, int odd) {
    __m256i w = _mm256_loadu_si256((const __m256i *)p);
    return _mm256_castsi256_ps(odd ? _mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000))
                                   : _mm256_slli_epi32(w, 16));
}

/* Shifts instead of widening moves, which cross lanes: of these Zen 3 has one a cycle, of shifts
 * two. */
static inline __attribute__((always_inline)) TARGET VEC vi8(const uint8_t *p, int i) {
    __m256i w = _mm256_loadu_si256((const __m256i *)p);
    w = _mm256_slli_epi32(w, (24 - 8 * i));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(w, 24));
}

static inline __attribute__((always_inline)) TARGET float vtotal(VEC v) {
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

#define GEMV_OPS gemv_avx2
#include "kernels/gemv_template.h"
#endif
