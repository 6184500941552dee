/* SPDX-License-Identifier: Apache-2.0
 * Products of block-quantised rows with vectors of 8 bits: the arithmetic of each tier behind one
 * table. Its results are the same to the bit in every tier; docs/design/quantized-products.md says
 * what is rounded where. */
#ifndef CCMEM_BLOCKS_H
#define CCMEM_BLOCKS_H

#include "quant/formats.h"

enum {
    BLOCKS_RUN = 32,  /* elements of a run: of formats whose blocks have 32, 64 or 128 */
    BLOCKS_LANES = 8, /* partial sums: unit i of a row, a run or a block of 256, belongs to i % 8 */
    BLOCKS_ROWS = 4   /* rows of x that the second kernel of a format takes at once */
};

/* What lies where in a packed row of x, which begins with its q's; in bytes, whole words. */
typedef struct blocks_layout {
    size_t units; /* what x has one scale for: runs, or 256 elements */
    size_t scale; /* float: x is about scale * q */
    /* Of runs: int32_t, minus the format's zero times the sum of the run's q's, for kernels that
     * multiply q of W without a sign. Else int16_t, 16 a unit: the sums of each 16 q's. */
    size_t sums;
    /* Of runs: float, the sum of the run's q's times scale, which offsets are multiplied with. Else
     * int16_t, 8 a unit: the sums of each 32 q's. */
    size_t more;
    size_t bytes; /* of a row: an odd number of cache lines, so that equal places of rows are in
                     different sets of a cache */
} blocks_layout;

/* Rows of packed x. */
typedef struct blocks_x {
    const uint8_t *row; /* the first, aligned to a cache line */
    blocks_layout at;
    ccmem_block_format format; /* of W */
} blocks_x;

/* A few rows of W, or the same part of each. */
typedef struct blocks_w {
    const uint8_t *first; /* of the first row: a block, */
    size_t number;        /* the number of which in its row this is, */
    size_t n;             /* and so many of them */
    size_t rows;
    size_t bytes; /* from a row to the next, */
    size_t apart; /* and floats from its sums to those of the next */
} blocks_w;

/* Adds the products of row i of W with row r of x to sums[i * apart + r * BLOCKS_LANES + lane].
 * `sums` is 64-byte aligned. */
typedef void (*blocks_dot)(float *sums, const blocks_w *w, const blocks_x *x);

/* A block of a product with many rows of x. */
typedef struct blocks_panel {
    const uint8_t *w; /* `height` rows, taken apart by unpack(), */
    size_t ldw;       /* so many bytes apart */
    const int32_t *x; /* `width` packed rows, transposed: word j of row r at j * width + r */
    blocks_layout at; /* where what lies in a row of x; all in words, not in bytes */
    float *lanes;     /* scratch: (BLOCKS_LANES + 1) * height * width, 64-byte aligned */
    float *sums;      /* [i * width + r] becomes the product of row i of W with row r of x */
} blocks_panel;

typedef void (*blocks_multiply)(const blocks_panel *p);

/* Kernels for many rows of x, of all formats but CCMEM_INT8_ROW. */
typedef struct blocks_panels {
    uint32_t lanes;  /* sums in a vector */
    uint32_t width;  /* rows of x in a panel: two vectors */
    uint32_t height; /* rows of W in a block */
    /* Bytes of a block of W that is taken apart; and takes n blocks of a row apart. */
    size_t (*unpacked)(ccmem_block_format format);
    void (*unpack[CCMEM_BLOCK_FORMATS])(uint8_t *to, const uint8_t *w, size_t n, size_t runs);
    /* 8 packed rows of x, `bytes` apart, as columns of a panel; `words` is a multiple of 4. */
    void (*pack)(int32_t *to, const int8_t *x, size_t bytes, size_t words);
    /* [0]: for the first vector of a panel's rows, [1] for both. */
    blocks_multiply multiply[CCMEM_BLOCK_FORMATS][2];
} blocks_panels;

typedef struct blocks_ops {
    /* Packs a row of x: runs, or units of 256. */
    void (*pack_runs)(uint8_t *row, const blocks_layout *at, const float *x, int zero);
    void (*pack_supers)(uint8_t *row, const blocks_layout *at, const float *x);
    /* [0]: one row of x, [1]: BLOCKS_ROWS. NULL for CCMEM_INT8_ROW. */
    blocks_dot dot[CCMEM_BLOCK_FORMATS][2];
    /* The sums of n times BLOCKS_LANES partial sums, always added in the same order; these are zero
     * then. */
    void (*total)(float *to, float *sums, size_t n);
    const blocks_panels *panels; /* NULL: many rows of x are taken as a few after the other */
} blocks_ops;

extern const blocks_ops blocks_portable, blocks_avx2, blocks_avxvnni, blocks_avx512vnni;

static inline int blocks_super(ccmem_block_format format) {
    return block_formats[format].elements == BLOCK_SUPER;
}

/* Of a row of so many blocks. */
static inline blocks_layout blocks_layout_of(ccmem_block_format format, size_t blocks) {
    enum { LINE = 64 };
    const int super = blocks_super(format);
    const size_t elements = blocks * block_formats[format].elements;
    const size_t units = super ? blocks : elements / BLOCKS_RUN;
    blocks_layout at = {.units = units, .scale = elements};
    at.sums = at.scale + units * sizeof(float);
    at.more = at.sums + units * (super ? 16 * sizeof(int16_t) : sizeof(int32_t));
    at.bytes = at.more + units * (super ? 8 * sizeof(int16_t) : sizeof(float));
    at.bytes = ((at.bytes + LINE - 1) / LINE | 1) * LINE;
    return at;
}

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
    case CCMEM_INT8_G128:
    case CCMEM_INT8_G32_ZP:
    case CCMEM_INT8_G64_ZP:
    case CCMEM_INT8_G128_ZP: return 128;
    default: return 0;
    }
}

#endif
