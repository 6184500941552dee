/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-256X2 with AES-NI on 128-bit registers, where there is no AVX2; and AEGIS-256 on every
 * processor with AES instructions. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,sse4.2")))
#include "simd/v128.h"

#define vcontext(lane, lanes) v128_low32((int)((lane) | ((lanes) - 1) << 8))

#define AEGIS_SPILLS 1
#define AEGIS_OPS aegis256_aesni
#include "crypto/aegis256/template.h"
#endif
