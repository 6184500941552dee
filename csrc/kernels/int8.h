/* SPDX-License-Identifier: Apache-2.0
 * Products of encrypted rows of int8 with plain rows that are rounded to int8: the arithmetic of
 * each tier behind one table. See ccmem_store_linear_int8() in ccmem.h. Sums are exact, and what
 * comes before and after them is one operation after the other, each rounded once: so all tables
 * give the same bits. */
#ifndef CCMEM_INT8_H
#define CCMEM_INT8_H

#include <stddef.h>
#include <stdint.h>

enum {
    INT8_DOT_HEIGHT = 4,   /* rows of W in a block of sums along k */
    INT8_DOT_ROWS_MAX = 6, /* rows of x in one, in every tier */
    INT8_VECTOR_MAX = 64,  /* bytes, in every tier */
    INT8_TRANSPOSED = 8,   /* rows of x that pack() takes at a time */

    /* Elements of a row up to which a sum fits into 32 bits: 2^17 * 128 * 127 < 2^31. The sums of
     * numbers that are too high by `excess` go round, and are right again when that is taken
     * away. */
    INT8_SUM_MAX = 1 << 17,
    /* And up to which those do not go round either: 2^16 * 255 * 127 < 2^31. */
    INT8_PART_MAX = 1 << 16
};

/* A row of x that was rounded. */
typedef struct int8_row {
    float scale; /* x is about scale * q; NaN where one of x is infinite or NaN */
    int32_t sum; /* of all q, of up to INT8_SUM_MAX */
} int8_row;

/* What becomes of sums. The numbers are those of the block's rows of W and of x. */
typedef struct int8_epilogue {
    const int8_row *row;
    int32_t excess;     /* of the table that summed up */
    const float *scale; /* one for each row of W */
    const float *bias;  /* NULL: nothing is added */
    void *y;            /* y[r * ldy + o] */
    size_t ldy;
    int halves; /* 1: y is of bfloat16, rounded to the nearest, of two the even one */
} int8_epilogue;

/* The arithmetic of a tier. A word is what one step of a panel takes of a row: 4 elements of one
 * byte, or 2 of two bytes. Rows of rounded x are filled up with zeros to whole INT8_VECTOR_MAX. */
typedef struct int8_ops {
    uint32_t lanes;    /* sums in a vector */
    uint32_t width;    /* rows of x in a panel: two vectors */
    uint32_t height;   /* rows of W in a block of a panel */
    uint32_t dot_rows; /* rows of x in a block of sums along k at most */
    uint32_t few_rows; /* rows of x up to which sums along k are faster than panels */
    uint32_t unit;     /* bytes of an element in panels, and of W beside them: 1 or 2 */
    int32_t excess;    /* by which W's elements are too high in the sums: 128 or 0 */

    /* Rounds n numbers of x, of float32 [0] or bfloat16 [1], to bytes q at `to`: with `most` the
     * largest |x|, q is (x * enlarge) * per_step to the nearest whole number, of two the even one
     * (byte_scale_of()). Zeros up to a whole INT8_VECTOR_MAX are written behind them. */
    void (*quantise[2])(int8_t *to, int8_row *row, const void *x, size_t n);

    /* Adds to sums[r * lds + i], for i < h <= INT8_DOT_HEIGHT rows of W, `ldw` bytes apart, and as
     * many rows of x, `ldx` bytes apart, as the function's number, from 1, the products of n
     * elements. Up to a vector more of W and x is read. */
    void (*dot[INT8_DOT_ROWS_MAX])(int32_t *sums, size_t lds, const uint8_t *w, size_t ldw,
                                   size_t h, const int8_t *x, size_t ldx, size_t n);

    /* n elements of W for a panel's block. Up to a vector more is read and written. */
    void (*convert)(void *to, const uint8_t *from, size_t n);

    /* INT8_TRANSPOSED rows of x as their places in a panel: word j of row r to
     * to[j * width + r], for j < words, filled up to a multiple of 4. */
    void (*pack)(int32_t *to, const int8_t *x, size_t ldx, size_t words);

    /* Adds to sums[i * width + r] the products of row i of W, `height` of them, `ldw` bytes apart,
     * with row r of a panel of x, over n words: [0] for the panel's first vector of rows, [1] for
     * both. */
    void (*panel[2])(int32_t *sums, const uint8_t *w, size_t ldw, const int32_t *panel, size_t n);

    /* y from sums[i * width + r] of h rows of W and `rows` rows of x, up to 8 rows of which are
     * read at once; and from sums[r * lds + i]:
     *
     *     y = (float)(sum - excess * row.sum) * (row.scale * scale) + bias */
    void (*finish)(const int32_t *sums, size_t h, size_t rows, const int8_epilogue *end);
    void (*finish_dot)(const int32_t *sums, size_t lds, size_t h, size_t rows,
                       const int8_epilogue *end);
} int8_ops;

extern const int8_ops int8_portable, int8_avx2, int8_avx_vnni, int8_avx512_vnni;

/* The same for sums of rows longer than INT8_SUM_MAX: sums[i * width + r], and total[r] of q. */
void int8_finish_wide(const int64_t *sums, size_t width, size_t h, size_t rows,
                      const int64_t *total, const int8_epilogue *end);

#endif
