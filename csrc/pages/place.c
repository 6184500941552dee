/* SPDX-License-Identifier: Apache-2.0
 * Puts bytes that are written to a page into the plaintext of a part of it. */
#include <string.h>

#include "memory/secret.h"
#include "pages/page.h"

/* n bytes for `offset` of a page, as far as they lie in what scratch holds. */
static inline void place_run(uint8_t *scratch, uint32_t at, uint32_t span, const uint8_t *run,
                             uint32_t offset, uint32_t n) {
    uint32_t end = offset + n;
    uint32_t lo = offset > at ? offset - at : 0;
    uint32_t hi = end < at + span ? (end > at ? end - at : 0) : span;
    if (lo < hi)
        copy_secret(scratch + lo, run + (at + lo - offset), hi - lo);
}

/* Many runs of n bytes, a constant that one move copies: a general copy takes far longer. */
static inline __attribute__((always_inline)) void place_items(uint8_t *scratch, uint32_t at,
                                                              uint32_t span, const uint8_t *items,
                                                              const uint64_t *offsets, size_t count,
                                                              uint32_t mask, uint32_t n) {
    for (size_t i = 0; i < count; i++) {
        uint32_t offset = (uint32_t)offsets[i] & mask;
        if (offset - at <= span - n) /* wraps, and fails, below `at` */
            memcpy(scratch + (offset - at), items + i * n, n);
        else
            place_run(scratch, at, span, items + i * n, offset, n);
    }
}

void page_place(uint8_t *scratch, uint32_t at, uint32_t span, const uint8_t *data,
                const uint64_t *offsets, size_t count, uint32_t mask, uint32_t n) {
    switch (n) {
    case 1: place_items(scratch, at, span, data, offsets, count, mask, 1); break;
    case 2: place_items(scratch, at, span, data, offsets, count, mask, 2); break;
    case 4: place_items(scratch, at, span, data, offsets, count, mask, 4); break;
    case 8: place_items(scratch, at, span, data, offsets, count, mask, 8); break;
    default:
        for (size_t i = 0; i < count; i++)
            place_run(scratch, at, span, data + i * n, (uint32_t)offsets[i] & mask, n);
    }
}
