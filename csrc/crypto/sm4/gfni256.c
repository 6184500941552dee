/* SPDX-License-Identifier: Apache-2.0
 * SM4 with GFNI on 256-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#define TARGET __attribute__((target("gfni,pclmul,avx2,vpclmulqdq")))
#include "simd/v256.h"

#include "simd/bytes.h"

#define SM4_SETS 4
#include "crypto/sm4/round_gfni.h"

#define SM4_OPS sm4_gfni256
#include "crypto/sm4/template.h"
#endif
