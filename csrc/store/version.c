/* SPDX-License-Identifier: Apache-2.0 */
#include "store/version.h"

#include "memory/secret.h"

/* Returns 1 if the page is what was sealed under `version`, or for 0 was never sealed, as far as
 * its tag says; a cipher without tags has to believe it. */
static int vouched(const ccmem_store *s, uint64_t page, uint64_t version) {
    static const page_tag none;
    if (!s->tag)
        return 1;
    if (!version)
        return ccmem_equal(s->tag[page], none, sizeof none);
    const store_core *c = s->core;
    const page_context *with = core_page(c, version);
    return with->ops->open_part(with, NULL, s->ct + (page << c->page_shift), s->first + page,
                                version, s->tag[page], 0, 0, 0) != PAGE_BAD;
}

__attribute__((noinline)) uint64_t vouched_version(const ccmem_store *s, uint64_t page,
                                                   uint64_t word, uint64_t sealed) {
    const uint64_t limit = core_version_limit(s->core);
    if (word > limit && sealed < limit && vouched(s, page, sealed))
        return sealed;
    if (sealed > limit && word < limit && vouched(s, page, word))
        return word;
    return limit;
}

__attribute__((noinline)) int never_written(const ccmem_store *s, uint64_t page) {
    static const page_tag none;
    if (s->core->read_only)
        return 0;
    return !s->tag || (ccmem_equal(s->tag[page], none, sizeof none) &&
                       !__atomic_load_n(store_sealed(s, page), __ATOMIC_RELAXED));
}

uint64_t store_used_version(const ccmem_store *s, uint64_t page) {
    return used_version(s, page, __atomic_load_n(&s->version[page], __ATOMIC_RELAXED));
}
