/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products with AVX-VNNI: Intel from Alder Lake, AMD from Zen 5. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/blocks_scale.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2 ",avxvnni")))
#define B32_VNNI _avx_epi32
#include "simd/b32.h"

#include "simd/f8.h"

#define BLOCKS_OPS blocks_avxvnni
#include "kernels/blocks_template.h"
#endif
