/* SPDX-License-Identifier: Apache-2.0
 * The table of tiers, the choice among the kernels of one, and which tier is active. */
#include "tiers/tiers.h"

#include <stdatomic.h>

#include "platform/cpu.h"

static const tier_descriptor *const tiers[CCMEM_TIER_COUNT] = {
    [CCMEM_TIER_PORTABLE] = &tier_portable,
    [CCMEM_TIER_AESNI] = &tier_aesni,
    [CCMEM_TIER_VAES256] = &tier_vaes256,
    [CCMEM_TIER_VAES512] = &tier_vaes512,
};

const tier_descriptor *tier_of(ccmem_tier number) {
    return (unsigned)number < CCMEM_TIER_COUNT ? tiers[number] : NULL;
}

const char *ccmem_tier_name(ccmem_tier number) {
    const tier_descriptor *t = tier_of(number);
    return t ? t->name : NULL;
}

int tier_supported(ccmem_tier number) {
    const tier_descriptor *t = tier_of(number);
    return t && t->kernels && cpu_has(t->needs);
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* Adds the tables of `more` that `kernels` has not. */
static void add(tier_kernels *kernels, const tier_kernels *more) {
#define TABLE(type, name)                                                                          \
    if (!kernels->name)                                                                            \
        kernels->name = more->name;
    TABLE(probe_ops, probe)
    TIER_TABLES(TABLE)
#undef TABLE
}

tier_kernels tier_kernels_of(ccmem_tier number) {
    tier_kernels kernels = {0};
    for (const tier_kernels *k = tiers[number]->kernels; !tier_last(k); k++)
        if (cpu_has(k->needs | k->suits))
            add(&kernels, k);
    add(&kernels, tier_portable.kernels);
    return kernels;
}

/* ---- the active tier ------------------------------------------------------------------------- */

/* The active tier's number + 1; 0: none is chosen yet. */
static _Atomic uint32_t active;

int tier_activate(ccmem_tier number) {
    uint32_t none = 0;
    return atomic_compare_exchange_strong(&active, &none, (uint32_t)number + 1);
}

int tier_chosen(void) { return atomic_load_explicit(&active, memory_order_acquire) != 0; }

ccmem_tier ccmem_tier_active(void) {
    uint32_t number = atomic_load_explicit(&active, memory_order_acquire);
    return number ? (ccmem_tier)(number - 1) : CCMEM_TIER_PORTABLE;
}
