/* SPDX-License-Identifier: Apache-2.0
 *
 * Start-up, and the tests of tiers. No lock: each thread that finds nothing chosen or tested yet
 * does the whole work for itself and publishes the result in one word, the first one wins, and a
 * fork in the middle leaves nothing half done.
 */
#include "crypto/gf128/gf128.h"
#include "memory/budget.h"
#include "platform/fork.h"
#include "selftest/selftest.h"
#include "tiers/tiers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Bit t: tier t passed its test; from FAILED_SHIFT on: it failed it. Both clear: it was not tested
 * yet. */
enum { FAILED_SHIFT = 16 };
static _Atomic uint32_t outcomes;

_Static_assert((int)CCMEM_TIER_COUNT <= (int)FAILED_SHIFT, "two bits a tier");

static ccmem_status find_tier(const char *name, ccmem_tier *out) {
    for (int t = 0; t < CCMEM_TIER_COUNT; t++)
        if (!strcmp(name, ccmem_tier_name((ccmem_tier)t))) {
            *out = (ccmem_tier)t;
            return tier_supported(*out) ? CCMEM_OK : CCMEM_ERR_TIER;
        }
    return CCMEM_ERR_TIER;
}

/* Tests a tier and remembers the outcome. Threads that meet here do the same work; of several
 * outcomes a failure counts. */
static ccmem_status test(ccmem_tier tier) {
    ccmem_status status = selftest_run(tier);
    if (status == CCMEM_OK)
        atomic_fetch_or_explicit(&outcomes, 1u << tier, memory_order_release);
    else if (status == CCMEM_ERR_SELFTEST)
        atomic_fetch_or_explicit(&outcomes, 1u << (FAILED_SHIFT + (unsigned)tier),
                                 memory_order_release);
    return status;
}

/* The same, if it was not tested yet. */
static ccmem_status tested(ccmem_tier tier) {
    const uint32_t known = atomic_load_explicit(&outcomes, memory_order_acquire);
    if (known >> (FAILED_SHIFT + (unsigned)tier) & 1)
        return CCMEM_ERR_SELFTEST;
    return known >> tier & 1 ? CCMEM_OK : test(tier);
}

/* The tier of that name, or the best one. A tier that gives a wrong answer is left out, whatever
 * the processor claims; the portable one must be right, and so must one asked for by name. */
static ccmem_status choose(const char *name, ccmem_tier *out) {
    if (name && *name) {
        ccmem_status status = find_tier(name, out);
        return status == CCMEM_OK ? tested(*out) : status;
    }
    for (int i = CCMEM_TIER_COUNT - 1;; i--) {
        *out = (ccmem_tier)i;
        if (!tier_supported(*out))
            continue;
        ccmem_status status = tested(*out);
        if (status != CCMEM_ERR_SELFTEST || *out == CCMEM_TIER_PORTABLE)
            return status;
    }
}

static void prepare(void) {
    gf128_init();
    budget_init();
}

ccmem_status ccmem_init(const char *name) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ccmem_tier tier = CCMEM_TIER_PORTABLE;
    ccmem_status status;

    if (tier_chosen())
        return CCMEM_OK;
    status = fork_init();
    if (status)
        return status;
    (void)fork_generation(); /* before the first object, so that fork_page is never 0 here */
    pthread_once(&once, prepare);
    status = choose(name, &tier);
    if (status == CCMEM_OK)
        (void)tier_activate(tier); /* or another thread was quicker */
    return status;
}

ccmem_status ccmem_tier_check(ccmem_tier tier) {
    if (!tier_chosen() || !tier_supported(tier))
        return CCMEM_ERR_TIER;
    return tested(tier);
}

int ccmem_tier_usable(ccmem_tier tier) { return ccmem_tier_check(tier) == CCMEM_OK; }

ccmem_status ccmem_selftest(ccmem_tier tier) {
    return tier_chosen() && tier_supported(tier) ? test(tier) : CCMEM_ERR_TIER;
}
