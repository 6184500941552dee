/* SPDX-License-Identifier: Apache-2.0
 *
 * Doors to the tables of attention that this processor can run, and one of the template with vector
 * words of its own (v512_twice.h). test_attention_kernels.py builds it with the kernels alone. */
#include "kernels/attention.h"

#include "memory/secret.h"
#include "platform/cpu.h"

#if CCMEM_X86
#define TARGET __attribute__((target(TARGET_PRODUCTS_AVX2)))
#include "v512_twice.h"

#include "simd/f8.h"

#define ATTENTION_OPS attention_twice
extern const attention_ops attention_twice;
#include "kernels/attention_template.h"
#endif

/* What the kernels need of memory/. */
void ccmem_wipe(void *p, size_t n) {
    volatile uint8_t *bytes = p;
    while (n--)
        *bytes++ = 0;
}

#define EXPORT __attribute__((visibility("default")))

/* NULL: not on this processor. */
EXPORT const attention_ops *unit_attention(const char *name) {
    const struct {
        const char *name;
        uint32_t needs;
        const attention_ops *ops;
    } tables[] = {
        {"portable", 0, &attention_portable},
#if CCMEM_X86
        {"avx2", CPU_AVX2 | CPU_FMA | CPU_F16C, &attention_avx2},
        {"twice", CPU_AVX2 | CPU_FMA | CPU_F16C, &attention_twice},
        {"avx512", CPU_AVX512 | CPU_FMA | CPU_F16C, &attention_avx512},
        {"bf16", CPU_AVX512 | CPU_FMA | CPU_F16C | CPU_AVX512_BF16, &attention_bf16},
#endif
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(tables[i].name, name))
            return cpu_has(tables[i].needs) ? tables[i].ops : NULL;
    return NULL;
}
