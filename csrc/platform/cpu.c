/* SPDX-License-Identifier: Apache-2.0
 * The processor's features, detected once, and their names. */
#include "platform/cpu.h"

#include <stdatomic.h>
#include <string.h>

/* An architecture without a file of its own. */
__attribute__((weak)) uint32_t cpu_detect(void) { return 0; }

__attribute__((weak)) int cpu_leaf(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]) {
    (void)leaf;
    (void)subleaf;
    (void)registers;
    return 0;
}

uint32_t cpu_features(void) {
    static _Atomic uint32_t known = CPU_UNSET;
    uint32_t features = atomic_load_explicit(&known, memory_order_relaxed);

    if (features & CPU_UNSET) {
        features = cpu_detect(); /* threads that race here store the same value */
        atomic_store_explicit(&known, features, memory_order_relaxed);
    }
    return features;
}

int cpu_has(uint32_t features) { return (cpu_features() & features) == features; }

const char *ccmem_cpu_feature(unsigned index, int *present) {
#define NAME(bit, symbol, name) [bit] = name,
    static const char *const names[] = {CPU_FEATURES(NAME)};
#undef NAME

    if (index >= sizeof names / sizeof *names)
        return NULL;
    if (present)
        *present = cpu_features() >> index & 1;
    return names[index];
}

void ccmem_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]) {
    memset(registers, 0, 4 * sizeof *registers);
    (void)cpu_leaf(leaf, subleaf, registers);
}
