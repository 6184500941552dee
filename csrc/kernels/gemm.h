/* SPDX-License-Identifier: Apache-2.0
 * Products of encrypted rows with several plain vectors: the arithmetic of each tier behind one
 * table. See ccmem_store_linear() in ccmem.h. */
#ifndef CCMEM_GEMM_H
#define CCMEM_GEMM_H

#include "platform/dtype.h"

enum {
    GEMM_DOT_HEIGHT = 4,  /* rows of W in a block of sums along k */
    GEMM_DOT_ROWS_MAX = 6 /* rows of x in one, in every tier */
};

/* What becomes of a block's sums. The numbers are those of the block's rows of W. */
typedef struct gemm_epilogue {
    const float *scale; /* NULL: 1 */
    const float *bias;  /* NULL: nothing is added */
    void *y;            /* y[r * ldy + o] */
    size_t ldy;
    int halves; /* 1: y is of bfloat16, rounded to the nearest; then nothing is added to it */
    int add;    /* 1: to what is at y, and scale and bias are for their total */
} gemm_epilogue;

/* Memory that will be read soon: of x, and of ciphertext. Any address is good. */
typedef struct gemm_ahead {
    const void *x, *w;
} gemm_ahead;

/* The arithmetic of a tier. A word is 4 bytes: a float32, or two bfloat16 where W and x are
 * multiplied as such. Rows of W lie `ldw` words apart, and zeros fill each up to whole vectors. */
typedef struct gemm_ops {
    uint32_t lanes;     /* words of a vector */
    uint32_t width;     /* rows of x in a panel: two vectors */
    uint32_t height[2]; /* rows of W in a block of a panel: of one vector, and of both */
    uint32_t dot_rows;  /* rows of x in a block of sums along k at most */
    uint32_t unit; /* bytes of an element of x, and of W when converted: 4, or 2 for bfloat16 */

    /* n elements of W at `from` as words at `to`. Up to a vector more is read and written. */
    void (*convert[DTYPES])(void *to, const uint8_t *from, size_t n);

    /* For h <= GEMM_DOT_HEIGHT rows of W and as many rows of x, `ldx` words apart, as the
     * function's number, from 1: the sums of `vectors` vectors of products, to end->y. A row may
     * come in pieces: without `end` the vectors of sums go to `kept` as they are, GEMM_DOT_HEIGHT
     * for each row of x, and with `more` they start from there. */
    void (*dot[GEMM_DOT_ROWS_MAX])(const float *w, size_t ldw, size_t h, const uint8_t *x,
                                   size_t ldx, size_t vectors, float *kept, int more,
                                   const gemm_epilogue *end);

    /* Stores at sums[i * width + r] the products of row i of W, `height` of them, with row r of a
     * panel of x, summed over n words, or with `add` adds them one after the other to what is
     * there: [0] for the panel's first vector of rows, [1] for both, each with its own height.
     * Meanwhile fetches a cache line from either of `ahead` for each `ahead_words` words, to L2. */
    void (*panel[2])(float *sums, const float *w, size_t ldw, const float *panel, size_t n, int add,
                     gemm_ahead ahead);
    uint32_t ahead_words;

    /* to[j * width + i] = word j of row i, for 8 rows, `stride` bytes apart, and j < n, a multiple
     * of 4. */
    void (*transpose)(float *to, const uint8_t *from, size_t stride, size_t n);

    /* y from the sums of h rows of W and `rows` rows of x. Up to 8 rows of sums are read at once.
     */
    void (*finish)(const float *sums, size_t h, size_t rows, const gemm_epilogue *end);
} gemm_ops;

extern const gemm_ops gemm_portable, gemm_avx2, gemm_avx512, gemm_bf16;

#endif
