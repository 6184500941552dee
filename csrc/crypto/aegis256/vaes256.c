/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-256X2 with VAES, both lanes in one 256-bit register, no AVX-512: AMD Zen 3, Intel Alder
 * Lake and its successors. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,avx2,vaes")))
#include "simd/v256.h"

#define vcontext(lane, lanes) vwords_each(0, 0x0101, 0, 0x0100)

#define AEGIS_BOTH
#define AEGIS_SPILLS 1
#define AEGIS_OPS aegis256_vaes256
#include "crypto/aegis256/template.h"
#endif
