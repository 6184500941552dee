/* SPDX-License-Identifier: Apache-2.0
 * Which version a page is sealed under next. A version must not be used twice, whatever damage does
 * to the page's word: the last one that each page was sealed under is kept apart as well, in a copy
 * that is damaged as easily. The two are equal whenever no writer is at the page. */
#ifndef CCMEM_STORE_VERSION_H
#define CCMEM_STORE_VERSION_H

#include "store/lock.h"

/* used_version() of a page one of whose two numbers leaves no version to use. */
uint64_t vouched_version(const ccmem_store *s, uint64_t page, uint64_t word, uint64_t sealed);

/* Returns the last version that a page may have been sealed under, as its word and the copy
 * tell: the next one is used for the first time. version_limit: there is none, or nothing tells
 * which it would be.
 *
 * At most one of the two is damaged, in whatever way. Then the higher one was used last, or is
 * higher than what was. (That the page opens under the lower one proves nothing: page, tag and word
 * may have been put back together.) The top bit is part of no version, so this holds without it as
 * well. That leaves a number without the top bit that is not below the limit, say a word of ones.
 * If the word as a whole is above the limit, no page was ever sealed under it: it is the one that
 * is damaged, and the other is whole. As that is the only witness, the tag must vouch for it. */
static inline uint64_t used_version(const ccmem_store *s, uint64_t page, uint64_t word) {
    uint64_t sealed = __atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED);
    uint64_t v = word & VERSION_MAX, copy = sealed & VERSION_MAX, used = copy > v ? copy : v;
    if (__builtin_expect(used < core_version_limit(s->core), 1))
        return used;
    return vouched_version(s, page, word, sealed);
}

/* Returns 1 if a page of version 0 was never written. Such a page has no tag; a version that was
 * put back to 0 leaves one behind. A store over a file has no such pages. */
int never_written(const ccmem_store *s, uint64_t page);

#endif
