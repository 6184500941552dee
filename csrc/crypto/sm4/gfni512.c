/* SPDX-License-Identifier: Apache-2.0
 * SM4 with GFNI on 512-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "simd/target.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",pclmul,vpclmulqdq,gfni")))
#include "simd/v512.h"

#include "simd/bytes.h"

#define SM4_SETS 4
#include "crypto/sm4/round_gfni.h"

#define SM4_OPS sm4_gfni512
#include "crypto/sm4/template.h"
#endif
