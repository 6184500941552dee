/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x with AVX-512: Intel from Ice Lake-SP, AMD from Zen 4. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/gemm.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_AVX512)))
#include "simd/v512.h"

#include "simd/f8.h"

#include "kernels/convert.h"
#define HEIGHT 12
#define HEIGHT_1 12
#define DOT_ROWS 6
#define UNIT sizeof(float)
#define MULTIPLY_ADD(a, b, c) ffma(a, b, c)
#define GEMM_OPS gemm_avx512
#include "kernels/gemm_template.h"
#endif
