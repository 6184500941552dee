/* SPDX-License-Identifier: Apache-2.0
 * All tests of a tier: of the tables that it uses, then of the others that the processor can run.
 */
#include "platform/cpu.h"
#include "selftest/selftest.h"

/* Tests the tables of `k` but for those of `done`. */
static ccmem_status test(const tier_kernels *k, const tier_kernels *done, const gemv_ops *gemv) {
    ccmem_status status = CCMEM_OK;
    const xts_ops *xts = k->xts != done->xts ? k->xts : NULL;
    const aegis_ops *aegis = k->aegis != done->aegis ? k->aegis : NULL;
#define TABLE(type, name)                                                                          \
    if (status == CCMEM_OK && k->name && k->name != done->name)                                    \
        status = selftest_##name(k->name);
    TIER_TABLES(TABLE)
#undef TABLE
    if (status == CCMEM_OK && (xts || aegis))
        status = selftest_fused(gemv, xts, aegis);
    return status;
}

ccmem_status selftest_run(ccmem_tier number) {
    const tier_kernels used = tier_kernels_of(number), none = {0};
    ccmem_status status = test(&used, &none, used.gemv);
    if (status == CCMEM_OK)
        status = selftest_quant();
    for (const tier_kernels *k = tier_of(number)->kernels; !tier_last(k); k++)
        if (status == CCMEM_OK && cpu_has(k->needs))
            status = test(k, &used, used.gemv);
    return status;
}
