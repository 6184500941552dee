/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x with AVX-512: Intel from Ice Lake-SP, AMD from Zen 4. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/gemm.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define LANES 16
#define HEIGHT 12
#define DOT_ROWS 6
typedef __m512 VEC;

#define vzero() _mm512_setzero_ps()
#define vload(p) _mm512_loadu_ps(p)
#define vstore(p, v) _mm512_storeu_ps(p, v)
#define vspread(p) _mm512_set1_ps(*(p))
#define vfma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vhalf(v) _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))

#define vf32(p) _mm512_loadu_ps(p)
#define vf16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define vbf16(p)                                                                                   \
    _mm512_castsi512_ps(_mm512_slli_epi32(                                                         \
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define vi8(p)                                                                                     \
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))))

#include "kernels/convert.h"
#define UNIT sizeof(float)
#define GEMM_OPS gemm_avx512
#include "kernels/gemm_template.h"
#endif
