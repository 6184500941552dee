/* SPDX-License-Identifier: Apache-2.0
 * Products of bfloat16 with bfloat16, two at a time, summed in float32, with AVX-512 BF16: AMD from
 * Zen 4, Intel from Cooper Lake and Sapphire Rapids. Subnormal numbers count as zeros there. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/gemm.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define LANES 16
#define HEIGHT 12
#define DOT_ROWS 6
typedef __m512 VEC;

#define vzero() _mm512_setzero_ps()
#define vload(p) _mm512_loadu_ps(p)
#define vstore(p, v) _mm512_storeu_ps(p, v)
#define vspread(p) _mm512_set1_ps(*(p))
#define vfma(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define vhalf(v) _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))

static TARGET CLEAR_REGISTERS void copy(void *to, const uint8_t *from, size_t n) {
    uint16_t *out = to;
    for (size_t i = 0; i < n; i += 2 * LANES)
        _mm512_storeu_si512(out + i, _mm512_loadu_si512(from + i * 2));
}

#define CONVERT {[CCMEM_BF16] = copy}
#define UNIT sizeof(uint16_t)
#define GEMM_OPS gemm_bf16
#include "kernels/gemm_template.h"
#endif
