/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of AVX-VNNI on processors that have AVX512-VNNI instead: kernels/int8_avx_vnni.c with
 * the other encoding of the same instruction, and the library's self-test of it. Prints "noticed"
 * or "not noticed" for the table as it is and for one that adds two products in 16 bits.
 * test_int8_kernels.py builds it with csrc/ and runs it. */
#include <stdio.h>

#include "platform/cpu.h"
#include "selftest/selftest.h"

#if CCMEM_X86
#define INT8_VNNI_TARGET "avx2,avx512vl,avx512vnni"
#define INT8_VNNI_ADD(sum, w, x) _mm256_dpbusd_epi32(sum, w, x)
#define int8_avx_vnni table
#include "kernels/int8_avx_vnni.c"
#undef int8_avx_vnni

static TARGET void saturated(int32_t *sums, size_t lds, const uint8_t *w, size_t ldw, size_t h,
                             const int8_t *x, size_t ldx, size_t n) {
    const VEC ones = _mm256_set1_epi16(1);
    (void)lds, (void)ldx;
    for (size_t i = 0; i < h; i++) {
        VEC sum[4] = {ZERO(), ZERO(), ZERO(), ZERO()};
        int32_t four[4];
        for (size_t k = 0; k < n; k += VBYTES) {
            VEC u = LOAD(w + i * ldw + k);
            DOT_FIRST(u);
            sum[0] = ADD(sum[0], _mm256_madd_epi16(_mm256_maddubs_epi16(u, LOAD(x + k)), ones));
        }
        _mm_storeu_si128((__m128i *)(void *)four, TOTALS(sum));
        sums[i] += four[0];
    }
}

int main(void) {
    int8_ops broken = table;
    broken.dot[0] = saturated;
    if (!cpu_has(CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI)) {
        puts("not on this processor");
        return 0;
    }
    puts(selftest_int8(&table) == CCMEM_OK ? "not noticed" : "noticed");
    puts(selftest_int8(&broken) == CCMEM_OK ? "not noticed" : "noticed");
    return 0;
}
#else
int main(void) {
    puts("not on this processor");
    return 0;
}
#endif
