/* SPDX-License-Identifier: Apache-2.0
 * The tier of AES-NI on 128-bit registers: Intel from Westmere to Skylake-X, AMD from Bulldozer to
 * Zen 2, and any newer processor under a system that does not save ymm state. */
#include "crypto/aegis256/aegis256.h"
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "platform/cpu.h"
#include "tiers/tiers.h"

#if CCMEM_X86
static const tier_kernels rows[] = {
    {.needs = CPU_AVX_VNNI | CPU_FMA | CPU_F16C, .blocks = &blocks_avxvnni},
    {.needs = CPU_AVX2 | CPU_AVX_VNNI, .int8 = &int8_avx_vnni},
    {.needs = CPU_AVX2 | CPU_FMA | CPU_F16C,
     .gemv = &gemv_avx2,
     .gemm = &gemm_avx2,
     .attention = &attention_avx2,
     .blocks = &blocks_avx2},
    {.needs = CPU_AVX2, .aegis = &aegis_avx2, .aegis256 = &aegis256_avx2, .int8 = &int8_avx2},
    {.needs = CPU_GFNI, .sm4 = &sm4_gfni128, .sm4_gcm = &sm4_gcm_gfni128},
    {.aes = &aes_aesni,
     .xts = &xts_aesni,
     .aegis = &aegis_aesni,
     .aegis256 = &aegis256_aesni,
     .aes_gcm = &aes_gcm_aesni,
     .sm4 = &sm4_aesni,
     .sm4_gcm = &sm4_gcm_aesni,
     .probe = &probe_aesni},
    TIER_LAST,
};
#define KERNELS rows
#else
#define KERNELS NULL
#endif

const tier_descriptor tier_aesni = {.name = "aesni",
                                    .needs = CPU_SSE42 | CPU_AESNI | CPU_PCLMUL,
                                    .kernels = KERNELS,
                                    .sizes = &tier_sizes_usual};
