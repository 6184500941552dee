/* SPDX-License-Identifier: Apache-2.0
 * Products of bfloat16 with bfloat16, two at a time, summed in float32, with AVX-512 BF16: AMD from
 * Zen 4, Intel from Cooper Lake and Sapphire Rapids. Subnormal numbers count as zeros there. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/gemm.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",avx512bf16")))
#include "simd/v512.h"

#include "simd/f8.h"

static TARGET CLEAR_REGISTERS void copy(void *to, const uint8_t *from, size_t n) {
    uint16_t *out = to;
    for (size_t i = 0; i < n; i += 2 * F_LANES)
        vstore(out + i, vload(from + i * 2));
}

#define CONVERT {[CCMEM_BF16] = copy}
#define HEIGHT 12
#define HEIGHT_1 12
#define DOT_ROWS 6
#define UNIT sizeof(uint16_t)
#define MULTIPLY_ADD(a, b, c) ffma_bfloats(a, b, c)
#define GEMM_OPS gemm_bf16
#include "kernels/gemm_template.h"
#endif
