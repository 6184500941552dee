/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-256X2 with AES-NI on 128-bit registers, encoded as AVX has it: see crypto/aegis/avx2.c. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,avx2")))
#include "simd/v128.h"

#define vcontext(lane, lanes) v128_low32((int)((lane) | ((lanes) - 1) << 8))

#define AEGIS_SPILLS 1
#define AEGIS_OPS aegis256_avx2
#include "crypto/aegis256/template.h"
#endif
