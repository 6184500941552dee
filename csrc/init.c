/* SPDX-License-Identifier: Apache-2.0
 *
 * Start-up. No lock: each thread that finds nothing chosen yet does the whole work for itself and
 * publishes the result in one word, the first one wins, and a fork in the middle leaves nothing
 * half done.
 */
#include "budget.h"
#include "cpu.h"
#include "fork.h"
#include "gf128.h"
#include "selftest.h"
#include "xts.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* Bit t: tier t is usable; from ACTIVE_SHIFT on: the active tier. 0: nothing chosen, for the
 * portable tier is usable in every choice. */
enum { ACTIVE_SHIFT = 8 };
static _Atomic uint32_t choice;

static const char *const names[CCMEM_TIER_COUNT] = {"portable", "aesni", "vaes256", "vaes512"};

static int known(ccmem_tier tier) { return tier >= CCMEM_TIER_PORTABLE && tier < CCMEM_TIER_COUNT; }

static ccmem_status find_tier(const char *name, ccmem_tier *tier) {
    for (int t = 0; t < CCMEM_TIER_COUNT; t++)
        if (!strcmp(name, names[t])) {
            *tier = (ccmem_tier)t;
            return cpu_supports(*tier) && xts_tier(*tier) ? CCMEM_OK : CCMEM_ERR_TIER;
        }
    return CCMEM_ERR_TIER;
}

/* A tier that gives a wrong answer is left out, whatever the processor claims; the portable one
 * must be right, and so must one asked for by name. */
static ccmem_status choose(const char *name, uint32_t *out) {
    ccmem_tier forced = CCMEM_TIER_COUNT, best = CCMEM_TIER_PORTABLE;
    ccmem_status status;
    uint32_t usable = 0;

    if (name && *name) {
        status = find_tier(name, &forced);
        if (status)
            return status;
    }
    for (int i = 0; i < CCMEM_TIER_COUNT; i++) {
        ccmem_tier tier = (ccmem_tier)i;
        if (!cpu_supports(tier) || !xts_tier(tier))
            continue;
        status = selftest_run(tier);
        if (status == CCMEM_OK) {
            usable |= 1u << i;
            best = tier;
        } else if (status != CCMEM_ERR_SELFTEST || tier == CCMEM_TIER_PORTABLE || tier == forced) {
            return status;
        }
    }
    *out = usable | (uint32_t)(forced < CCMEM_TIER_COUNT ? forced : best) << ACTIVE_SHIFT;
    return CCMEM_OK;
}

ccmem_status ccmem_init(const char *tier) {
    static pthread_once_t tables = PTHREAD_ONCE_INIT;
    uint32_t nothing = 0, chosen;
    ccmem_status status;

    if (atomic_load_explicit(&choice, memory_order_acquire))
        return CCMEM_OK;
    status = fork_init();
    if (status)
        return status;
    status = budget_init();
    if (status)
        return status;
    (void)fork_generation(); /* before the first object, so that fork_page is never 0 here */
    pthread_once(&tables, gf128_init);
    status = choose(tier, &chosen);
    if (!status)
        atomic_compare_exchange_strong(&choice, &nothing, chosen);
    return status;
}

ccmem_tier ccmem_tier_active(void) {
    return (ccmem_tier)(atomic_load_explicit(&choice, memory_order_acquire) >> ACTIVE_SHIFT);
}

int ccmem_tier_usable(ccmem_tier tier) {
    return known(tier) && (atomic_load_explicit(&choice, memory_order_acquire) >> tier & 1);
}

const char *ccmem_tier_name(ccmem_tier tier) { return known(tier) ? names[tier] : NULL; }

ccmem_status ccmem_selftest(ccmem_tier tier) {
    return ccmem_tier_usable(tier) ? selftest_run(tier) : CCMEM_ERR_TIER;
}

const char *ccmem_status_text(ccmem_status status) {
    switch (status) {
    case CCMEM_OK:
        return "success";
    case CCMEM_ERR_ARGUMENT:
        return "an argument is outside its documented domain";
    case CCMEM_ERR_RANGE:
        return "the offset and length reach outside the store";
    case CCMEM_ERR_EQUAL_HALVES:
        return "the two halves of the XTS key are equal; IEEE 1619-2018 requires them to differ";
    case CCMEM_ERR_NOMEM:
        return "the system refused memory";
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
    case CCMEM_ERR_TIER:
        return "the tier is unknown or this processor cannot run it";
    case CCMEM_ERR_SELFTEST:
        return "a known-answer test gave a wrong answer";
    case CCMEM_ERR_ENTROPY:
        return "the system's random generator failed";
    case CCMEM_ERR_IO:
        return "reading or mapping the file failed";
    case CCMEM_ERR_KEYFILE:
        return "the key file must hold exactly 32 bytes, or 64 hexadecimal digits and nothing but "
               "blanks after them";
    case CCMEM_ERR_INTEGRITY:
        return "a page, a message or a wrapped key does not match its tag";
    case CCMEM_ERR_READONLY:
        return "the store is over a file that others may have mapped, and cannot be written; copy "
               "the data to a new buffer";
    case CCMEM_ERR_BUDGET:
        return "the plaintext budget leaves no room; raise it, or close windows and arrays";
    case CCMEM_ERR_FAULT:
        return "the fault mechanism is not available on this system";
    case CCMEM_ERR_MAPPED:
        return "another mapping covers some of the bytes, and one of the two can be written";
    case CCMEM_ERR_CLOSED:
        return "the store was removed from its arena";
    case CCMEM_ERR_PINNED:
        return "too few frames of the window would be left unpinned";
    case CCMEM_ERR_THREAD:
        return "the system refused a thread; raise the limit of processes and threads";
    }
    return "unknown status";
}
