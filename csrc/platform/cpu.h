/* SPDX-License-Identifier: Apache-2.0
 * Processor features by CPUID and XGETBV. Knows no tier and no cipher. */
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

/* Feature bits; the order is that of ccmem_cpu_feature(). */
enum {
    CPU_SSE42 = 1u << 0,
    CPU_AESNI = 1u << 1,
    CPU_PCLMUL = 1u << 2,
    CPU_AVX2 = 1u << 3, /* and the system saves ymm state */
    CPU_VAES = 1u << 4,
    CPU_VPCLMUL = 1u << 5,
    CPU_AVX512 = 1u << 6, /* F, BW, DQ, VL, and the system saves zmm state */
    CPU_GFNI = 1u << 7,
    CPU_VBMI2 = 1u << 8,
    CPU_BMI2 = 1u << 9,
    CPU_FMA = 1u << 10, /* and the system saves ymm state, as for the next */
    CPU_F16C = 1u << 11,
    CPU_AVX512_BF16 = 1u << 12, /* besides CPU_AVX512 */
    /* Internal: made by AMD, where other instructions share the pipes of AES than on Intel's. */
    CPU_AMD = 1u << 30,
    CPU_UNSET = 1u << 31 /* internal: not detected yet */
};

/* The features of this processor that the operating system lets us use; detected once. */
uint32_t cpu_features(void);

/* 1 when there are all of these. */
int cpu_has(uint32_t features);

#endif
