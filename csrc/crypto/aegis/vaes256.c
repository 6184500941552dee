/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-128X2 with VAES, both lanes in one 256-bit register, no AVX-512: AMD Zen 3, Intel Alder
 * Lake and its successors. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "crypto/aegis/aegis.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,avx2,vaes")))
#include "simd/v256.h"

#define vcontext(lane, lanes) vwords_each(0, 0x0101, 0, 0x0100)

/* Bytes that the loops of crypto/aegis/run_vaes256.h take at a time. */
#define AEGIS_STEP 128
#define AEGIS_SPILLS 1
#define AEGIS_OPS aegis_vaes256
#define AEGIS_FUSED fused
static const aegis_fused_function fused[4];
#include "crypto/aegis/template.h"

#define FUSED_TARGET __attribute__((target("aes,avx2,vaes,fma,f16c")))
#define FUSED_LANES 8
#include "crypto/aegis/fused.h"
#endif
