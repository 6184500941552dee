/* SPDX-License-Identifier: Apache-2.0
 *
 * Start-up, and the tests of tiers. No lock: each thread that finds nothing chosen or tested yet
 * does the whole work for itself and publishes the result in one word, the first one wins, and a
 * fork in the middle leaves nothing half done.
 */
#include "crypto/gf128/gf128.h"
#include "crypto/xts/xts.h"
#include "memory/budget.h"
#include "platform/cpu.h"
#include "platform/fork.h"
#include "selftest/selftest.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Bit t: tier t passed its test; from FAILED_SHIFT on: it failed it. Both clear: it was not tested
 * yet. From ACTIVE_SHIFT on: the active tier, and CHOSEN once there is one. */
enum { FAILED_SHIFT = 8, ACTIVE_SHIFT = 16, CHOSEN = 1 << 24 };
static _Atomic uint32_t state;

static const char *const names[CCMEM_TIER_COUNT] = {"portable", "aesni", "vaes256", "vaes512"};

static int known(ccmem_tier tier) { return tier >= CCMEM_TIER_PORTABLE && tier < CCMEM_TIER_COUNT; }

/* 1 when the processor has what a tier needs, and its kernels were compiled. */
static int supported(ccmem_tier tier) {
    return known(tier) && cpu_supports(tier) && xts_tier(tier);
}

static ccmem_status find_tier(const char *name, ccmem_tier *tier) {
    for (int t = 0; t < CCMEM_TIER_COUNT; t++)
        if (!strcmp(name, names[t])) {
            *tier = (ccmem_tier)t;
            return supported(*tier) ? CCMEM_OK : CCMEM_ERR_TIER;
        }
    return CCMEM_ERR_TIER;
}

/* Tests a tier and remembers the outcome. Threads that meet here do the same work; of several
 * outcomes a failure counts. */
static ccmem_status test(ccmem_tier tier) {
    ccmem_status status = selftest_run(tier);
    if (status == CCMEM_OK)
        atomic_fetch_or_explicit(&state, 1u << tier, memory_order_release);
    else if (status == CCMEM_ERR_SELFTEST)
        atomic_fetch_or_explicit(&state, 1u << (FAILED_SHIFT + (unsigned)tier),
                                 memory_order_release);
    return status;
}

/* The same, if it was not tested yet. */
static ccmem_status tested(ccmem_tier tier) {
    const uint32_t outcomes = atomic_load_explicit(&state, memory_order_acquire);
    if (outcomes >> (FAILED_SHIFT + (unsigned)tier) & 1)
        return CCMEM_ERR_SELFTEST;
    return outcomes >> tier & 1 ? CCMEM_OK : test(tier);
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
        if (!supported(*out))
            continue;
        ccmem_status status = tested(*out);
        if (status != CCMEM_ERR_SELFTEST || *out == CCMEM_TIER_PORTABLE)
            return status;
    }
}

static int chosen(uint32_t s) { return (s & CHOSEN) != 0; }

ccmem_status ccmem_init(const char *name) {
    static pthread_once_t tables = PTHREAD_ONCE_INIT;
    ccmem_tier tier = CCMEM_TIER_PORTABLE;
    ccmem_status status;

    if (chosen(atomic_load_explicit(&state, memory_order_acquire)))
        return CCMEM_OK;
    status = fork_init();
    if (status)
        return status;
    status = budget_init();
    if (status)
        return status;
    (void)fork_generation(); /* before the first object, so that fork_page is never 0 here */
    pthread_once(&tables, gf128_init);
    status = choose(name, &tier);
    uint32_t before = atomic_load_explicit(&state, memory_order_acquire);
    while (status == CCMEM_OK && !chosen(before))
        if (atomic_compare_exchange_weak(&state, &before,
                                         before | CHOSEN | (uint32_t)tier << ACTIVE_SHIFT))
            break;
    return status;
}

ccmem_tier ccmem_tier_active(void) {
    return (ccmem_tier)(atomic_load_explicit(&state, memory_order_acquire) >> ACTIVE_SHIFT & 0xff);
}

ccmem_status ccmem_tier_check(ccmem_tier tier) {
    if (!chosen(atomic_load_explicit(&state, memory_order_acquire)) || !supported(tier))
        return CCMEM_ERR_TIER;
    return tested(tier);
}

int ccmem_tier_usable(ccmem_tier tier) { return ccmem_tier_check(tier) == CCMEM_OK; }

const char *ccmem_tier_name(ccmem_tier tier) { return known(tier) ? names[tier] : NULL; }

ccmem_status ccmem_selftest(ccmem_tier tier) {
    const int can = chosen(atomic_load_explicit(&state, memory_order_acquire)) && supported(tier);
    return can ? test(tier) : CCMEM_ERR_TIER;
}

const char *ccmem_status_text(ccmem_status status) {
    switch (status) {
    case CCMEM_OK: return "success";
    case CCMEM_ERR_ARGUMENT: return "an argument is outside its documented domain";
    case CCMEM_ERR_RANGE: return "the offset and length reach outside the store";
    case CCMEM_ERR_EQUAL_HALVES:
        return "the two halves of the XTS key are equal; IEEE 1619-2018 requires them to differ";
    case CCMEM_ERR_NOMEM: return "the system refused memory";
    case CCMEM_ERR_MEMLOCK:
        return "RLIMIT_MEMLOCK leaves no room for another locked page; raise it (ulimit -l) or "
               "close unused keys and buffers";
    case CCMEM_ERR_SECRETMEM:
        return "the required level of secret memory is not available on this system";
    case CCMEM_ERR_FORK:
        return "the object belongs to the process that this one was forked from; make a new one "
               "here";
    case CCMEM_ERR_VERSION:
        return "a page has no unused version left under this key; move the data to a new buffer";
    case CCMEM_ERR_TIER: return "the tier is unknown or this processor cannot run it";
    case CCMEM_ERR_SELFTEST: return "a known-answer test gave a wrong answer";
    case CCMEM_ERR_ENTROPY: return "the system's random generator failed";
    case CCMEM_ERR_IO: return "reading or mapping the file failed";
    case CCMEM_ERR_KEYFILE:
        return "the key file must hold exactly 32 bytes, or 64 hexadecimal digits and nothing but "
               "blanks after them";
    case CCMEM_ERR_INTEGRITY: return "a page, a message or a wrapped key does not match its tag";
    case CCMEM_ERR_READONLY:
        return "the store is over a file that others may have mapped, and cannot be written; copy "
               "the data to a new buffer";
    case CCMEM_ERR_BUDGET:
        return "the plaintext budget leaves no room; raise it, or close windows and arrays";
    case CCMEM_ERR_FAULT: return "the fault mechanism is not available on this system";
    case CCMEM_ERR_MAPPED:
        return "another mapping covers some of the bytes, and one of the two can be written";
    case CCMEM_ERR_CLOSED: return "the store was removed from its arena";
    case CCMEM_ERR_PINNED: return "too few frames of the window would be left unpinned";
    case CCMEM_ERR_THREAD:
        return "the system refused a thread; raise the limit of processes and threads";
    }
    return "unknown status";
}
