/* SPDX-License-Identifier: Apache-2.0
 * Products of an encrypted matrix of quantised blocks: what both ways of taking rows share. See
 * ccmem_store_linear_blocks() in ccmem.h. */
#ifndef CCMEM_PRODUCT_BLOCKS_H
#define CCMEM_PRODUCT_BLOCKS_H

#include "kernels/blocks.h"
#include "simd/scalar.h"
#include "store/store.h"
#include "tiers/tiers.h"

typedef struct blocks_call {
    ccmem_store *store;
    const blocks_ops *ops;
    const tier_sizes *sizes;
    uint64_t offset;
    const block_format *format;
    const blocks_dot *dot;       /* of the format */
    const blocks_panels *panels; /* NULL: the tier has none */
    uint64_t blocks;             /* of a row of W */
    uint64_t row_bytes;
    uint64_t out_features;
    const float *bias;
    const uint8_t *from;    /* rows of x, */
    uint8_t *y;             /* and of the result: those of this pass */
    int x_halves, y_halves; /* 1: of bfloat16, else of float32 */
    size_t rows;
    size_t room;      /* rows that are packed: some behind the last are zeros, see blocks_room() */
    blocks_x x;       /* packed */
    int32_t *columns; /* and in panels; NULL: rows are few */
    uint64_t next;    /* atomic; the first row of W that no thread has taken, where groups are */
    outcome end;
} blocks_call;

/* Three rows of x that are left are multiplied as if they were BLOCKS_ROWS, which takes as long. */
static inline size_t blocks_room(size_t rows) {
    return rows % BLOCKS_ROWS == BLOCKS_ROWS - 1 ? rows + 1 : rows;
}

/* Writes the result of a row of x and a row of W. */
static inline void blocks_put(const blocks_call *l, size_t r, uint64_t row, float sum) {
    const uint64_t at = r * l->out_features + row;
    const float v = l->bias ? sum + l->bias[row] : sum;
    if (l->y_halves)
        ((uint16_t *)(void *)l->y)[at] = bfloat16_of(v);
    else
        ((float *)(void *)l->y)[at] = v;
}

/* Adds the products of rows of W with all rows of x from r to `end` to their sums, which for the
 * first of them begin at `sums`. */
static inline void blocks_add(const blocks_call *l, float *sums, const blocks_w *w, size_t r,
                              size_t end) {
    while (r < end) {
        const size_t rows = end - r < BLOCKS_ROWS ? 1 : BLOCKS_ROWS;
        blocks_x x = l->x;
        x.row += r * x.at.bytes;
        l->dot[rows > 1](sums, w, &x);
        sums += rows * BLOCKS_LANES;
        r += rows;
    }
}

/* Writes the results of n rows of W, whose sums are `apart` floats from each other, with the rows
 * of x from r to `end`. */
void blocks_finish(const blocks_call *l, float *sums, size_t apart, uint64_t row, size_t n,
                   size_t r, size_t end);

/* ccmem_store_linear_blocks() with x and y of float32 or bfloat16, of a format with blocks. */
ccmem_status blocks_linear(ccmem_store *store, uint64_t offset, ccmem_block_format format,
                           uint64_t out_features, uint64_t in_features, const void *x, int x_halves,
                           uint64_t nrows, const float *bias, void *y, int y_halves);

/* Bodies of parallel loops. Rows of W one after the other, their pages opened a few at a time into
 * a tile: for few rows of x, and for rows of W of any length. */
void blocks_stream(void *call, uint64_t begin, uint64_t end);

/* Groups of rows of W, opened as a whole, times a few rows of x after the other: for more. */
void blocks_group(void *call, uint64_t begin, uint64_t end);

/* Rows of W in a group; 0: they are too long for that. */
uint64_t blocks_group_rows(const blocks_call *l);

/* Groups of rows of W, taken apart, times panels of x: for many rows; and rows in such a group. */
void blocks_panel_groups(void *call, uint64_t begin, uint64_t end);
uint64_t blocks_panel_rows(const blocks_call *l);

#endif
