/* SPDX-License-Identifier: Apache-2.0
 * The sizes that tiers begin with: for an L1 of 32 KiB and an L2 of 512 KiB, or of 1 MiB or more as
 * processors with AVX-512 have it. The constants are measured: docs/log. */
#include "tiers/tiers.h"

/* What does not depend on the caches. */
/* clang-format off */
#define SIZES                                                                                      \
    .open = 64 << 10,  /* XTS starts slowly, and an L2 is large enough */                          \
    .fused = 64 << 10,                                                                             \
    /* Memory of the pool and pages begin with a system page: x and W would ask for the same sets  \
     * of an L1. With a row of AES-XTS pages that cost a tenth of the time (Zen 4). */             \
    .x_shift = 1024,                                                                               \
    .gemv_grain = 512 << 10,                                                                       \
    .few_rows = 48,                                                                                \
    .few_group = 64 << 10,                                                                         \
    .rows_max = 640 << 10,                                                                         \
    .kept_pages = 192 << 10, /* a page of 4 KiB for each of 48 rows */                             \
    .pass_rows = 256,        /* since each pass opens W anew */                                    \
    .pack_grain = 64 << 10,                                                                        \
    .gemm_grain = 96 << 10,                                                                        \
    .blocks_open = 64 << 10, /* as with other types: XTS starts slowly */                          \
    .blocks_grain = 512 << 10, /* in four pieces, each more than is opened at once */              \
    .blocks_few = 3,                                                                               \
    .blocks_group = 96 << 10, /* in an L2, beside x */                                             \
    .blocks_part = 16 << 10,  /* in an L1 */                                                       \
    .blocks_many = 8,                                                                              \
    .blocks_tile = 256 << 10,                                                                      \
    .blocks_pass = 8 << 20,                                                                        \
    .int8_tile = 256 << 10,                                                                        \
    .int8_group = 256 << 10,                                                                       \
    .int8_part = 16 << 10,                                                                         \
    .int8_depth = 2048,                                                                            \
    .int8_pass = 4 << 20,                                                                          \
    .int8_grain = 256 << 10,                                                                       \
    .attention_few = 16,                                                                           \
    .attention_chunk = 256, /* their scores stay in an L1 beside a block */                        \
    .attention_part = 512,                                                                         \
    .attention_grain = 128 << 10,                                                                  \
    .attention_rows = 192, /* each block is opened once for them; with what follows, 420 KiB */    \
    .attention_tokens = 128
/* clang-format on */

const tier_sizes tier_sizes_usual = {
    SIZES,
    .whole_panels = 1,
    .few_piece = 768, /* of 3 rows of x and 4 of W 21 KiB: in an L1 */
    .depth = 512,     /* 32 KiB of a panel: an L2 keeps up, and sums move half as often */
    .pass = 24 << 20, /* of x: fewer passes that open W; a last-level cache need not hold it */
    .block = 208 << 10,
    .block_as_is = 304 << 10,
    .block_rows = 48,
};

const tier_sizes tier_sizes_large = {
    SIZES,
    .few_piece = 1 << 20, /* whole rows: a vector is used twice as often, and L2 keeps up */
    .depth = 512,         /* an L2 is as fast for 32 rows */
    .pass = 8 << 20,      /* some MiB of a last-level cache, for all blocks */
    .block = 400 << 10,
    .block_as_is = 400 << 10,
    .block_rows = 96,
};
