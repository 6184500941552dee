/* SPDX-License-Identifier: Apache-2.0
 * Tiers: one descriptor each says what a tier is called, what the processor must have, which
 * kernels it has and which sizes its products work with. The files of the folder are the
 * descriptors; a tier is added by a file, a number in ccmem.h and a line in tiers.c. */
#ifndef CCMEM_TIERS_H
#define CCMEM_TIERS_H

#include "crypto/aegis/aegis.h"
#include "crypto/aes/aes.h"
#include "crypto/gcm/gcm.h"
#include "crypto/sm4/sm4.h"
#include "crypto/xts/xts.h"
#include "kernels/attention.h"
#include "kernels/blocks.h"
#include "kernels/gemm.h"
#include "kernels/gemv.h"
#include "kernels/int8.h"
#include "kernels/probe.h"

/* The tables of kernels that a tier may have: the type and the name of each. A line here, and a
 * function selftest_NAME(), are all that another one takes. gemm_bf16 multiplies bfloat16 by
 * bfloat16, int8 int8 by int8; attention_bf16 has what attention does where q, K and V are
 * bfloat16. */
#define TIER_TABLES(TABLE)                                                                         \
    TABLE(aes_ops, aes)                                                                            \
    TABLE(xts_ops, xts)                                                                            \
    TABLE(aegis_ops, aegis)                                                                        \
    TABLE(aegis_ops, aegis256)                                                                     \
    TABLE(gcm_ops, aes_gcm)                                                                        \
    TABLE(sm4_ops, sm4)                                                                            \
    TABLE(gcm_ops, sm4_gcm)                                                                        \
    TABLE(gemv_ops, gemv)                                                                          \
    TABLE(gemm_ops, gemm)                                                                          \
    TABLE(gemm_ops, gemm_bf16)                                                                     \
    TABLE(int8_ops, int8)                                                                          \
    TABLE(attention_ops, attention)                                                                \
    TABLE(attention_ops, attention_bf16)                                                           \
    TABLE(blocks_ops, blocks)

/* Tables of kernels. NULL: none here. */
typedef struct tier_kernels {
    uint32_t needs; /* features (platform/cpu.h) without which they cannot run, beside the tier's */
    uint32_t suits; /* features of the processors that they are the best for, beside these */
    const probe_ops *probe;
#define TABLE(type, name) const type *name;
    TIER_TABLES(TABLE)
#undef TABLE
} tier_kernels;

#define TIER_LAST {.needs = UINT32_MAX}

static inline int tier_last(const tier_kernels *k) { return k->needs == UINT32_MAX; }

/* Sizes that products work with, in bytes unless they count rows or words. */
typedef struct tier_sizes {
    uint32_t open; /* of pages that are opened at a time */

    /* One row of x: */
    uint32_t fused;      /* multiplied at a time in the registers that pages are opened in */
    uint32_t x_shift;    /* from the start of a system page to x */
    uint32_t gemv_grain; /* of W that are worth another thread */

    /* Several rows of x: */
    uint32_t few_rows;     /* rows of x up to which sums along k are faster than panels, */
    uint32_t whole_panels; /* 1: but for whole ones of rows of W that are multiplied as they are */
    uint32_t few_group;    /* of W's rows in a group, converted, when rows of x are few */
    uint32_t few_piece;    /* words of them and of x that are multiplied at a time */
    uint32_t rows_max;     /* what the lowest such group takes at most; wider rows are cut */
    uint32_t depth; /* words of a panel that are multiplied by all rows of a block at a time */
    uint32_t block; /* of W, converted, that stays in L2, */
    uint32_t block_as_is; /* or multiplied where it was opened: without pages beside it */
    uint32_t block_rows;  /* rows of W in it at most: each block reads all of x */
    uint32_t kept_pages;  /* opened and kept beside it, where parts of rows end within pages */
    uint32_t pass;        /* of x in panels at a time, since all blocks read them, */
    uint32_t pass_rows;   /* but at least so many rows, since each pass opens W anew */
    uint32_t pack_grain;  /* of x that are worth another thread to round or to quantise */
    uint32_t gemm_grain;  /* units of work that are: an element of W costs one, and one more for
                             each 16 rows of x */

    /* Quantised blocks: */
    uint32_t blocks_open;  /* of pages that are opened at a time, for few rows of x */
    uint32_t blocks_grain; /* of W that are worth another thread */
    uint32_t blocks_few;   /* rows of x up to which rows of W come one after the other */
    uint32_t blocks_group; /* of W's rows that are opened at a time, for more rows of x */
    uint32_t blocks_part;  /* of packed rows of x that are multiplied at a time */
    uint32_t blocks_many;  /* rows of x up to which few of them are taken after the other */
    uint32_t blocks_tile;  /* of W's rows that are taken apart beside a panel of x, in an L2 */
    uint32_t blocks_pass;  /* of packed x at a time, since each pass opens W anew */

    /* int8 by int8: */
    uint32_t int8_tile;  /* of W's rows that sums along k take at a time */
    uint32_t int8_group; /* of W's rows beside panels, as they are there */
    uint32_t int8_part;  /* elements of a row of W that are taken at a time; whole vectors */
    uint32_t int8_depth; /* words of k for which a panel is multiplied at a time */
    uint32_t int8_pass;  /* of rounded x in panels at a time */
    uint32_t int8_grain; /* units of work that are worth another thread, as above */

    /* Attention. Rows are those of q that share a head of K and V. */
    uint32_t attention_few;    /* up to so many rows one after the other, more in blocks */
    uint32_t attention_chunk;  /* tokens whose scores are computed at a time, of few rows */
    uint32_t attention_part;   /* tokens of a head that are worth a part of their own */
    uint32_t attention_grain;  /* bytes of K and V that are worth another thread */
    uint32_t attention_rows;   /* rows of a block, */
    uint32_t attention_tokens; /* and tokens at a time */
} tier_sizes;

typedef struct tier_descriptor {
    const char *name; /* as PYCCMEM_TIER spells it */
    uint32_t needs;   /* features without which the processor cannot run it */
    /* The best first, then TIER_LAST; NULL: not compiled for this architecture. What no row has is
     * the portable tier's. */
    const tier_kernels *kernels;
    const tier_sizes *sizes;
} tier_descriptor;

extern const tier_descriptor tier_portable, tier_aesni, tier_vaes256, tier_vaes512;

/* What tiers begin with; those whose processors have an L2 of 1 MiB or more. */
extern const tier_sizes tier_sizes_usual, tier_sizes_large;

/* The descriptor; NULL outside the enumeration. */
const tier_descriptor *tier_of(ccmem_tier number);

/* 1 when the tier was compiled and the processor can run it. Its self-test is another matter. */
int tier_supported(ccmem_tier number);

/* The tables that a supported tier uses on this processor: of each kind the first one in its rows
 * that the processor can run and that suits it. */
tier_kernels tier_kernels_of(ccmem_tier number);

/* Makes a supported tier the active one. Returns 0 if there is one already. */
int tier_activate(ccmem_tier number);

/* 1 when there is an active tier. */
int tier_chosen(void);

static inline tier_kernels tier_active_kernels(void) {
    return tier_kernels_of(ccmem_tier_active());
}

static inline const tier_sizes *tier_active_sizes(void) {
    return tier_of(ccmem_tier_active())->sizes;
}

#endif
