/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x with AVX2, FMA and F16C: AMD from Zen, Intel from Haswell. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/gemm.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2)))
#include "simd/v256.h"

#include "simd/f8.h"

#include "kernels/convert.h"
#define HEIGHT 6
#define HEIGHT_1 12
#define DOT_ROWS 3
#define UNIT sizeof(float)
#define MULTIPLY_ADD(a, b, c) ffma(a, b, c)
#define GEMM_OPS gemm_avx2
#include "kernels/gemm_template.h"
#endif
