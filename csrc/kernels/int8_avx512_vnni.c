/* SPDX-License-Identifier: Apache-2.0
 * Products of int8 with AVX512-VNNI: Intel from Ice Lake-SP, AMD from Zen 4. See int8_avx_vnni.c.
 */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>
#include <string.h>

#include "kernels/int8_avx2.h"
#include "memory/secret.h"
#include "simd/target.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",avx512vnni")))

typedef __m512i VEC;

#define VBYTES 64
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ZERO() _mm512_setzero_si512()

INLINE VEC spread(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}
#define SPREAD(p) spread(p)

INLINE __m256i fold(VEC v) {
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

INLINE __m128i totals(const VEC v[4]) {
    const __m256i t = _mm256_hadd_epi32(_mm256_hadd_epi32(fold(v[0]), fold(v[1])),
                                        _mm256_hadd_epi32(fold(v[2]), fold(v[3])));
    return _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
}
#define TOTALS(v) totals(v)

#define DOT_FIRST(w) w = _mm512_xor_si512(w, _mm512_set1_epi8(-128))
#define DOT_ADD(sum, w, x) sum = _mm512_dpbusd_epi32(sum, w, x)
#define PANEL_ADD(sum, w, x) sum = _mm512_dpbusd_epi32(sum, w, x)
#define HEIGHT 12
#define DOT_ROWS 6
#include "kernels/int8_template.h"

const int8_ops int8_avx512_vnni = {.lanes = LANES,
                                   .width = WIDTH,
                                   .height = HEIGHT,
                                   .dot_rows = DOT_ROWS,
                                   .few_rows = 8,
                                   .unit = 1,
                                   .excess = 128,
                                   .quantise = {int8_avx2_quantise_f32, int8_avx2_quantise_bf16},
                                   .dot = {dot_1, dot_2, dot_3, dot_4, dot_5, dot_6},
                                   .convert = int8_avx2_convert,
                                   .pack = int8_avx2_pack_32,
                                   .panel = {panel_1, panel_2},
                                   .finish = int8_avx2_finish_32,
                                   .finish_dot = int8_avx2_finish_dot};
#endif
