/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products with AVX2 with FMA and F16C: AMD from Zen, Intel from Haswell. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/blocks_scale.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2)))
#include "simd/b32.h"

#include "simd/f8.h"

#define BLOCKS_OPS blocks_avx2
#include "kernels/blocks_template.h"
#endif
