/* SPDX-License-Identifier: Apache-2.0
 * Attention with AVX2, FMA and F16C: AMD from Zen, Intel from Haswell. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/attention.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2)))
#include "simd/v256.h"

#include "simd/f8.h"

#define ATTENTION_OPS attention_avx2
#include "kernels/attention_template.h"
#endif
