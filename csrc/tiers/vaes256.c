/* SPDX-License-Identifier: Apache-2.0
 * The tier of VAES on 256-bit registers: AMD Zen 3, Intel Alder Lake and its successors. */
#include "crypto/aegis256/aegis256.h"
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "platform/cpu.h"
#include "tiers/tiers.h"

#if CCMEM_X86
static const tier_kernels rows[] = {
    {.needs = CPU_AVX_VNNI | CPU_FMA | CPU_F16C, .blocks = &blocks_avxvnni},
    {.needs = CPU_AVX_VNNI, .int8 = &int8_avx_vnni},
    {.needs = CPU_FMA | CPU_F16C,
     .gemv = &gemv_avx2,
     .gemm = &gemm_avx2,
     .attention = &attention_avx2,
     .blocks = &blocks_avx2},
    {.int8 = &int8_avx2},
    {.needs = CPU_GFNI, .sm4 = &sm4_gfni256, .sm4_gcm = &sm4_gcm_gfni256},
    {.aes = &aes_aesni,
     .xts = &xts_vaes256,
     .aegis = &aegis_vaes256,
     .aegis256 = &aegis256_vaes256,
     .aes_gcm = &aes_gcm_vaes256,
     .sm4 = &sm4_vaes256,
     .sm4_gcm = &sm4_gcm_vaes256,
     .probe = &probe_vaes256},
    TIER_LAST,
};
#define KERNELS rows
#else
#define KERNELS NULL
#endif

const tier_descriptor tier_vaes256 = {.name = "vaes256",
                                      .needs = CPU_SSE42 | CPU_AESNI | CPU_PCLMUL | CPU_AVX2 |
                                               CPU_VAES | CPU_VPCLMUL,
                                      .kernels = KERNELS,
                                      .sizes = &tier_sizes_usual};
