/* SPDX-License-Identifier: Apache-2.0
 * Features of x86 processors. Leaf and bit numbers: Intel SDM volume 2A, CPUID; AMD APM volume 3,
 * appendix E. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <cpuid.h>

enum {
    XCR0_YMM = 0x06, /* xmm and upper halves of ymm */
    XCR0_ZMM = 0xe6  /* those, the mask registers and all of zmm */
};

static uint64_t read_xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static uint32_t bit_if(uint32_t reg, unsigned bit, uint32_t feature) {
    return reg >> bit & 1 ? feature : 0;
}

/* By the vendor's name, "AuthenticAMD". */
static uint32_t detect_amd(void) {
    uint32_t eax, ebx, ecx, edx;
    int amd = __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_AMD_ebx &&
              edx == signature_AMD_edx && ecx == signature_AMD_ecx;
    return amd ? CPU_AMD : 0;
}

int cpu_leaf(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]) {
    /* The first leaf of each range (0, 0x40000000, 0x80000000) names the last one. Beyond it a
     * processor answers for another leaf, instead of with zeros. */
    uint32_t eax, ebx, ecx, edx, range = leaf & 0xc0000000;

    /* Without a hypervisor its range is one that the processor does not have. */
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (range == 0x40000000 && !(ecx >> 31)))
        return 0;
    __cpuid(range, eax, ebx, ecx, edx);
    if (leaf > eax)
        return 0;
    __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
    return 1;
}

uint32_t cpu_detect(void) {
    const uint32_t avx512_parts = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    uint32_t eax, ebx, ecx, edx, found, floats;
    uint64_t xcr0;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx))
        return 0;
    found = detect_amd() | bit_if(ecx, 20, CPU_SSE42) | bit_if(ecx, 25, CPU_AESNI) |
            bit_if(ecx, 1, CPU_PCLMUL);
    floats = bit_if(ecx, 12, CPU_FMA) | bit_if(ecx, 29, CPU_F16C);
    /* Without OSXSAVE, XGETBV itself is undefined; without AVX there is no ymm state to ask for. */
    xcr0 = (ecx >> 27 & 1) && (ecx >> 28 & 1) ? read_xcr0() : 0;

    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return found;
    found |= bit_if(ebx, 8, CPU_BMI2) | bit_if(ecx, 8, CPU_GFNI);
    if ((xcr0 & XCR0_YMM) == XCR0_YMM)
        found |= floats | bit_if(ebx, 5, CPU_AVX2) | bit_if(ecx, 9, CPU_VAES) |
                 bit_if(ecx, 10, CPU_VPCLMUL);
    if ((xcr0 & XCR0_ZMM) == XCR0_ZMM && (ebx & avx512_parts) == avx512_parts)
        found |= CPU_AVX512 | bit_if(ecx, 6, CPU_VBMI2) | bit_if(ecx, 11, CPU_AVX512_VNNI);
    if (found & CPU_AVX2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx))
        found |= bit_if(eax, 4, CPU_AVX_VNNI) |
                 (found & CPU_AVX512 ? bit_if(eax, 5, CPU_AVX512_BF16) : 0);
    return found;
}
#endif
