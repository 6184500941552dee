/* SPDX-License-Identifier: Apache-2.0
 * The tier of VAES on processors with AVX-512: Intel from Ice Lake-SP, AMD from Zen 4. */
#include "crypto/aegis256/aegis256.h"
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "platform/cpu.h"
#include "tiers/tiers.h"

#if CCMEM_X86
static const tier_kernels rows[] = {
    {.needs = CPU_AVX512_VNNI, .int8 = &int8_avx512_vnni},
    {.needs = CPU_AVX_VNNI, .int8 = &int8_avx_vnni},
    {.suits = CPU_AMD, .xts = &xts_vaes512_amd},
    {.needs = CPU_AVX512_BF16, .gemm_bf16 = &gemm_bf16, .attention_bf16 = &attention_bf16},
    {.needs = CPU_AVX512_VNNI, .blocks = &blocks_avx512vnni},
    {.needs = CPU_GFNI, .sm4 = &sm4_gfni512, .sm4_gcm = &sm4_gcm_gfni512},
    {.aes = &aes_aesni,
     .xts = &xts_vaes512,
     .aegis = &aegis_vaes512,
     .aegis256 = &aegis256_vaes512,
     .aes_gcm = &aes_gcm_vaes512,
     .sm4 = &sm4_vaes512,
     .sm4_gcm = &sm4_gcm_vaes512,
     .gemv = &gemv_avx512,
     .gemm = &gemm_avx512,
     .int8 = &int8_avx2,
     .attention = &attention_avx512,
     .blocks = &blocks_avx2,
     .probe = &probe_vaes512},
    TIER_LAST,
};
#define KERNELS rows
#else
#define KERNELS NULL
#endif

const tier_descriptor tier_vaes512 = {.name = "vaes512",
                                      .needs = CPU_SSE42 | CPU_AESNI | CPU_PCLMUL | CPU_AVX2 |
                                               CPU_VAES | CPU_VPCLMUL | CPU_AVX512 | CPU_FMA |
                                               CPU_F16C,
                                      .kernels = KERNELS,
                                      .sizes = &tier_sizes_large};
