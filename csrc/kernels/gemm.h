/* SPDX-License-Identifier: Apache-2.0
 * Products of encrypted rows with several plain vectors: the arithmetic of each tier behind one
 * table, and the product itself. See ccmem_store_linear() in ccmem.h. */
#ifndef CCMEM_MATMUL_PANELS_H
#define CCMEM_MATMUL_PANELS_H

#include "ccmem.h"

enum {
    PANEL_DTYPES = CCMEM_I8 + 1,
    PANEL_FEW = 48,        /* rows of x up to which sums along k are faster than panels */
    PANEL_DOT_HEIGHT = 4,  /* rows of W in a block of sums along k */
    PANEL_DOT_ROWS_MAX = 6 /* rows of x in one, in every tier */
};

/* What becomes of a block's sums. The numbers are those of the block's rows of W. */
typedef struct panel_end {
    const float *scale; /* NULL: 1 */
    const float *bias;  /* NULL: nothing is added */
    void *y;            /* y[r * ldy + o] */
    size_t ldy;
    int halves; /* 1: y is of bfloat16, rounded to the nearest; then nothing is added to it */
    int add;    /* 1: to what is at y, and scale and bias are for their total */
} panel_end;

/* The arithmetic of a tier. A word is 4 bytes: a float32, or two bfloat16 where W and x are
 * multiplied as such. Rows of W lie `ldw` words apart, and zeros fill each up to whole vectors. */
typedef struct panel_ops {
    uint32_t lanes;    /* words of a vector */
    uint32_t width;    /* rows of x in a panel: two vectors */
    uint32_t height;   /* rows of W in a block of a panel */
    uint32_t dot_rows; /* rows of x in a block of sums along k at most */
    uint32_t unit;     /* bytes of an element of x, and of W when converted: 4, or 2 for bfloat16 */

    /* n elements of W at `from` as words at `to`. Up to a vector more is read and written. */
    void (*convert[PANEL_DTYPES])(void *to, const uint8_t *from, size_t n);

    /* For h <= PANEL_DOT_HEIGHT rows of W and as many rows of x, `ldx` words apart, as the
     * function's number, from 1: the sums of `vectors` vectors of products, to end->y. */
    void (*dot[PANEL_DOT_ROWS_MAX])(const float *w, size_t ldw, size_t h, const uint8_t *x,
                                    size_t ldx, size_t vectors, const panel_end *end);

    /* Adds to sums[i * width + r] the products of row i of W, `height` of them, with row r of a
     * panel of x, over n words: [0] for the panel's first vector of rows, [1] for both. */
    void (*panel[2])(float *sums, const float *w, size_t ldw, const float *panel, size_t n);

    /* to[j * width + i] = word j of row i, for 8 rows, `stride` bytes apart, and j < n, a multiple
     * of 4. */
    void (*turn)(float *to, const uint8_t *from, size_t stride, size_t n);

    /* y from the sums of h rows of W and `rows` rows of x. Up to 8 rows of sums are read at once.
     */
    void (*finish)(const float *sums, size_t h, size_t rows, const panel_end *end);
} panel_ops;

extern const panel_ops panel_portable, panel_avx2, panel_avx512, panel_bf16;

/* What goes with the ciphers' tier on this processor; with `halves`, for bfloat16 W and x
 * multiplied as such, NULL where that cannot be. */
const panel_ops *panel_tier(ccmem_tier tier, int halves);

/* A product whose arguments were checked, of at least one row and column: ccmem_store_linear(),
 * whose x is of float32, or of bfloat16 where `ops` takes that, and whose y may be, too. y is not
 * zeroed on failure. */
typedef struct panel_product {
    ccmem_store *store;
    uint64_t offset;
    ccmem_dtype dtype;
    uint64_t out_features, in_features;
    const void *x;
    uint64_t nrows, ldx;
    const float *scale, *bias;
    void *y;
    uint64_t ldy;
    int halves; /* y is of bfloat16, where panel_whole() */
} panel_product;

/* 1 when each result is summed at once, and can be rounded. */
int panel_whole(const panel_ops *ops, const panel_product *product);

/* The product. The errors of store_open_pages(), and CCMEM_ERR_NOMEM. */
ccmem_status panel_multiply(const panel_ops *ops, const panel_product *product);

#endif
