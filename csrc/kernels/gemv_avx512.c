/* SPDX-License-Identifier: Apache-2.0
 * Products with AVX-512: Intel from Ice Lake-SP, AMD from Zen 4, where the ciphers use it too. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/gemv.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define LANES 16
typedef __m512 VEC;

#define vzero() _mm512_setzero_ps()
#define vload(p) _mm512_load_ps(p)
#define vstore(p, v) _mm512_store_ps(p, v)
#define vadd(a, b) _mm512_add_ps(a, b)
#define vfma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf32(p) _mm512_loadu_ps(p)
#define vf16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))

static inline __attribute__((always_inline)) TARGET VEC vbf16(const uint8_t *p, int odd) {
    __m512i w = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000))
                                   : _mm512_slli_epi32(w, 16));
}

static inline __attribute__((always_inline)) TARGET VEC vi8(const uint8_t *p, int i) {
    __m512i w = _mm512_loadu_si512(p);
    w = _mm512_slli_epi32(w, (unsigned)(24 - 8 * i));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(w, 24));
}

static inline __attribute__((always_inline)) TARGET float vtotal(VEC v) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

#define GEMV_OPS gemv_avx512
#include "kernels/gemv_template.h"
#endif
