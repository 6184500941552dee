/* SPDX-License-Identifier: Apache-2.0
 * Encrypted tweaks of recently touched pages: (page, version) -> E_K2(tweak). Direct-mapped,
 * bounded, in memory that is neither dumped nor inherited by a fork; shared by all threads without
 * a lock. It saves the ten or fourteen AES rounds that stand before the first block of a random
 * read. */
#ifndef CCMEM_TWEAK_CACHE_H
#define CCMEM_TWEAK_CACHE_H

#include "crypto/xts/xts.h"
#include "memory/secret.h"

/* Lockless in the manner of chess transposition tables (Hyatt and Mann, 2002): the two words that
 * name the entry are stored xored with a mix of the data. A reader that catches parts of two
 * entries finds a name that fits neither, unless two AES outputs agree in 64 bits, which has
 * probability 2^-64 and needs the tear besides. An empty entry names version 0, which has no
 * tweak. */
typedef struct tweak_entry {
    _Alignas(32) xts_tweak name; /* (page, version) ^ tweak */
    xts_tweak tweak;
} tweak_entry;

typedef struct tweak_cache {
    tweak_entry *entries; /* NULL: off */
    uint64_t mask;
} tweak_cache;

/* Both words of the name depend on both words of the tweak. Where a vector is loaded or stored in
 * two halves, the low halves may come from one entry and the high halves from another; a name
 * xored word by word would then fit whenever the two pages have the same version. */
static inline xts_tweak tweak_mix(xts_tweak t) {
    uint64_t both = t[0] ^ t[1];
    return (xts_tweak){both, both};
}

/* At most `entries` entries, rounded up to a power of two, and no more than `npages` need; 0 is
 * off. CCMEM_ERR_NOMEM, CCMEM_ERR_SECRETMEM. */
ccmem_status tweak_cache_init(tweak_cache *cache, uint32_t entries, uint64_t npages);

/* Wipes and unmaps. `alien`: in a forked child, where the memory is not mapped. */
void tweak_cache_destroy(tweak_cache *cache, int alien);

uint64_t tweak_cache_bytes(const tweak_cache *cache);

/* 1 and the tweak in *t0 when (page, version) is there, else 0 and *t0 as it was. */
static inline int tweak_cache_get(const tweak_cache *cache, uint64_t page, uint64_t version,
                                  xts_tweak *t0) {
    if (!cache->entries)
        return 0;
    const volatile tweak_entry *e = &cache->entries[page & cache->mask];
    xts_tweak tweak = e->tweak, differ = e->name ^ tweak_mix(tweak) ^ (xts_tweak) { page, version };
    uint64_t other = differ[0] | differ[1];
    DECLASSIFY(other); /* the tweak has cancelled out: two page numbers and versions are compared */
    if (other)
        return 0;
    *t0 = tweak;
    return 1;
}

static inline void tweak_cache_put(const tweak_cache *cache, uint64_t page, uint64_t version,
                                   xts_tweak t0) {
    if (!cache->entries)
        return;
    volatile tweak_entry *e = &cache->entries[page & cache->mask];
    e->name = tweak_mix(t0) ^ (xts_tweak) { page, version };
    e->tweak = t0;
}

#endif
