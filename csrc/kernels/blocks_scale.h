/* SPDX-License-Identifier: Apache-2.0
 * How x is quantised to 8 bits, for all tiers. */
#ifndef CCMEM_BLOCKS_SCALE_H
#define CCMEM_BLOCKS_SCALE_H

#include "kernels/blocks.h"
#include "simd/scalar.h"

/* What becomes of a run, or of a super, of x. */
typedef struct blocks_scale {
    float scale;   /* of one unit of q: most / 127 */
    float per;     /* 127 / most */
    uint32_t keep; /* all ones; 0: its q's are zeros */
} blocks_scale;

/* For x of whose sizes the highest has the bits `most`. All below 2^-100 counts as zeros: the
 * inverse of its scale could not be told. One that is infinite or no number makes the scale none.
 * Without a branch, since x is a secret. */
static inline blocks_scale blocks_scale_of(uint32_t most) {
    enum { LEAST = 27 << 23, INFINITE = 0x7f800000, NO_NUMBER = 0x7fc00000, ONE = 0x3f800000 };
    const uint32_t finite = below(most, INFINITE), kept = finite & ~below(most, LEAST);
    const float size = float_of_bits((most & kept) | (ONE & ~kept));
    return (blocks_scale){.scale = float_of_bits((bits_of(size / 127.0f) & kept) |
                                                 (NO_NUMBER & ~finite)),
                          .per = float_of_bits(bits_of(127.0f / size) & kept),
                          .keep = kept};
}

#endif
