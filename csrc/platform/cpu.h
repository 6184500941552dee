/* SPDX-License-Identifier: Apache-2.0
 * Features of the processor. Knows no tier and no cipher. */
#ifndef CCMEM_CPU_H
#define CCMEM_CPU_H

#include "ccmem.h"

#if defined(__x86_64__)
#define CCMEM_X86 1
#else
#define CCMEM_X86 0
#endif

/* Inside a loop that waits for another thread: leaves the core's shared resources to it. */
static inline void cpu_relax(void) {
#if CCMEM_X86
    __builtin_ia32_pause();
#endif
}

/* Features: bit, symbol, and name as ccmem_cpu_feature() gives it. AVX2 and what follows it of x86
 * mean also that the system saves ymm state, CPU_AVX512 (F, BW, DQ and VL) zmm state. */
#define CPU_FEATURES(FEATURE)                                                                      \
    FEATURE(0, CPU_SSE42, "sse4.2")                                                                \
    FEATURE(1, CPU_AESNI, "aes")                                                                   \
    FEATURE(2, CPU_PCLMUL, "pclmulqdq")                                                            \
    FEATURE(3, CPU_AVX2, "avx2")                                                                   \
    FEATURE(4, CPU_VAES, "vaes")                                                                   \
    FEATURE(5, CPU_VPCLMUL, "vpclmulqdq")                                                          \
    FEATURE(6, CPU_AVX512, "avx512")                                                               \
    FEATURE(7, CPU_GFNI, "gfni")                                                                   \
    FEATURE(8, CPU_VBMI2, "avx512_vbmi2")                                                          \
    FEATURE(9, CPU_BMI2, "bmi2")                                                                   \
    FEATURE(10, CPU_FMA, "fma")                                                                    \
    FEATURE(11, CPU_F16C, "f16c")                                                                  \
    FEATURE(12, CPU_AVX512_BF16, "avx512_bf16")                                                    \
    FEATURE(13, CPU_AVX_VNNI, "avx_vnni")                                                          \
    FEATURE(14, CPU_AVX512_VNNI, "avx512_vnni")

enum {
#define SYMBOL(bit, symbol, name) symbol = 1u << (bit),
    CPU_FEATURES(SYMBOL)
#undef SYMBOL
        /* Internal: made by AMD, where other instructions share the pipes of AES than on Intel's.
         */
        CPU_AMD = 1u
        << 30,
    CPU_UNSET = 1u << 31 /* internal: not detected yet */
};

/* Asks the processor and the system: of the architecture's own file. */
uint32_t cpu_detect(void);

/* CPUID, of the architecture's own file. Returns 0 for a leaf that there is not. */
int cpu_leaf(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);

/* The features of this processor that the operating system lets us use; detected once. */
uint32_t cpu_features(void);

/* 1 when there are all of these. */
int cpu_has(uint32_t features);

#endif
