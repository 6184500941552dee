/* SPDX-License-Identifier: Apache-2.0
 * Products of block-quantised rows with vectors of 8 bits: the arithmetic of each tier behind one
 * table. Its results are the same to the bit in every tier; docs/design/quantized-products.md says
 * what is rounded where. */
#ifndef CCMEM_BLOCKS_H
#define CCMEM_BLOCKS_H

#include "quant/formats.h"

enum {
    BLOCKS_RUN = 32,   /* elements: what a lane of 4 each of a vector of bytes holds */
    BLOCKS_LANES = 16, /* partial sums: element i of a row belongs to number i / 4 % 16 */
    BLOCKS_ROWS = 4    /* rows of x that the second kernel of a format takes at once */
};

/* What is packed of a run of x, of formats whose blocks have 32, 64 or 128 elements. */
typedef struct blocks_run {
    _Alignas(32) int8_t q[BLOCKS_RUN];
    /* Of each 4 q's the sum: as a float times x's scale, where the format has an offset; else minus
     * its `zero` times, for kernels that multiply q of W without a sign. */
    union {
        float sums[BLOCKS_RUN / 4];
        int32_t less[BLOCKS_RUN / 4];
    };
} blocks_run;

/* The same of 256 elements, of the other formats. */
typedef struct blocks_super {
    _Alignas(32) int8_t q[BLOCK_SUPER];
    int16_t sums16[BLOCK_SUPER / 16]; /* of each 16 q's */
    int32_t sums32[BLOCK_SUPER / 32]; /* and of each 32 */
} blocks_super;

/* Rows of packed x. */
typedef struct blocks_x {
    const uint8_t *q;          /* runs, or supers, of the first row */
    const float *scale;        /* of each of them */
    size_t stride;             /* bytes from a row to the next, of both */
    ccmem_block_format format; /* of W */
} blocks_x;

/* Adds the products of n blocks of a row of W, the first of which is number `first` of the row, to
 * sums[r * BLOCKS_LANES + lane] of each row r of x. `sums` is 64-byte aligned. */
typedef void (*blocks_dot)(float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                           size_t first);

typedef struct blocks_ops {
    /* Packs n runs of 32, or n supers of 256 elements. `sums`: as floats; else times -zero. */
    void (*pack_runs)(blocks_run *to, float *scale, const float *x, size_t n, int zero, int sums);
    void (*pack_supers)(blocks_super *to, float *scale, const float *x, size_t n);
    /* [0]: one row of x, [1]: BLOCKS_ROWS. NULL for CCMEM_INT8_ROW. */
    blocks_dot dot[CCMEM_BLOCK_FORMATS][2];
    /* The sum of the partial sums of a row, always added in the same order; they are zero then. */
    float (*total)(float *sums);
} blocks_ops;

extern const blocks_ops blocks_portable, blocks_avx2, blocks_avxvnni, blocks_avx512vnni;

/* What is taken from q of W where it is held without a sign. */
static inline int blocks_zero(ccmem_block_format format) {
    switch (format) {
    case CCMEM_Q4_0:
    case CCMEM_INT4_G32:
    case CCMEM_INT4_G64:
    case CCMEM_INT4_G128: return 8;
    case CCMEM_Q5_0: return 16;
    case CCMEM_Q8_0:
    case CCMEM_IQ4_NL:
    case CCMEM_INT8_G32:
    case CCMEM_INT8_G64:
    case CCMEM_INT8_G128: return 128;
    default: return 0;
    }
}

#endif
