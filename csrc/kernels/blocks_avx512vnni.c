/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products with AVX512-VNNI on 256-bit registers: Intel from Ice Lake-SP, AMD from
 * Zen 4, which does no more a cycle on longer ones. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/blocks_scale.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",avx512vnni,fma,f16c")))
#define B32_VNNI _epi32
#include "simd/b32.h"

#include "simd/f8.h"

#define BLOCKS_OPS blocks_avx512vnni
#include "kernels/blocks_template.h"
#endif
