/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x with AVX2, FMA and F16C: AMD from Zen, Intel from Haswell. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/gemm.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
#define HEIGHT 6
#define DOT_ROWS 3
typedef __m256 VEC;

#define vzero() _mm256_setzero_ps()
#define vload(p) _mm256_loadu_ps(p)
#define vstore(p, v) _mm256_storeu_ps(p, v)
#define vspread(p) _mm256_broadcast_ss(p)
#define vfma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vhalf(v) (v)

#define vf32(p) _mm256_loadu_ps((const float *)(const void *)(p))
#define vf16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define vbf16(p)                                                                                   \
    _mm256_castsi256_ps(_mm256_slli_epi32(                                                         \
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))), 16))
#define vi8(p)                                                                                     \
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))

#include "kernels/convert.h"
#define UNIT sizeof(float)
#define GEMM_OPS gemm_avx2
#include "kernels/gemm_template.h"
#endif
