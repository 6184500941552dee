/* SPDX-License-Identifier: Apache-2.0
 * Products of quantised blocks: each format's kernels, and what they take of x, are the portable
 * ones' to the bit; and those agree with the blocks turned into floats. */
#include "selftest/selftest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    UNITS = 11,  /* blocks of a row: eight, four, and some that are left */
    HEIGHT = 12, /* rows of W in a block of a panel at most; row i begins with block i */
    WIDTH = 32,  /* and rows of x */
    BLOCKS = UNITS + HEIGHT,
    ROWS = 2 * BLOCKS_ROWS, /* of x, those of the second half the same again */
    ELEMENTS = UNITS * BLOCK_SUPER,
    ROW_MAX = 60 * 64, /* bytes of a packed row */
    APART_MAX = 4096,  /* and of a row of W that was taken apart */
    W_ROWS = 2,        /* rows of W of one call */
    SUMS = W_ROWS * BLOCKS_ROWS * BLOCKS_LANES
};

typedef struct products {
    _Alignas(64) float sums[SUMS], expected[SUMS];
    _Alignas(64) uint8_t x[ROWS * ROW_MAX], same[ROWS * ROW_MAX];
    _Alignas(64) int32_t columns[WIDTH * ROW_MAX / 4];
    _Alignas(64) float lanes[(BLOCKS_LANES + 1) * HEIGHT * WIDTH], of_panel[HEIGHT * WIDTH];
    _Alignas(64) uint8_t apart[HEIGHT * APART_MAX];
    float plain[BLOCKS_ROWS][ELEMENTS], w[ELEMENTS];
    uint8_t blocks[BLOCKS * BLOCK_BYTES_MAX];
} products;

/* Any bits, but scales that are finite and not too far from each other. */
static void fill(products *p, ccmem_block_format format) {
    static const int8_t least[] = {-128, -128, -127, -1, 0, 1, 127, -128};
    const block_format *is = &block_formats[format];
    selftest_fill(p->blocks, sizeof p->blocks, 21 + (uint64_t)format);
    if (is->bytes > is->elements) /* of signed bytes: those whose sums are the largest */
        for (size_t i = 0; i + sizeof least <= sizeof p->blocks; i += 3 * sizeof least)
            memcpy(p->blocks + i, least, sizeof least);
    for (size_t i = 0; i < BLOCKS; i++) {
        uint8_t *block = p->blocks + i * is->bytes;
        const float scale = 0.25f + (float)i / 64;
        const uint16_t half[2] = {(uint16_t)(0x2c00 + 37 * i), (uint16_t)(0xb000 - 11 * i)};
        if (format >= CCMEM_INT4_G32) {
            memcpy(block + GROUP_SCALE, &scale, sizeof scale);
            if (is->offset)
                memcpy(block + GROUP_OFFSET, &scale, sizeof scale);
            continue;
        }
        const size_t at = format == CCMEM_Q2_K   ? Q2_K_D
                          : format == CCMEM_Q3_K ? Q3_K_D
                          : format == CCMEM_Q6_K ? Q6_K_D
                                                 : 0;
        memcpy(block + at, half, is->offset ? 4 : 2);
    }
}

/* Numbers of several sizes, and in one row zeros and some that count as such. */
static void fill_x(products *p) {
    selftest_fill((uint8_t *)p->plain, sizeof p->plain, 99);
    for (size_t r = 0; r < BLOCKS_ROWS; r++)
        for (size_t i = 0; i < ELEMENTS; i++) {
            int32_t bits;
            memcpy(&bits, &p->plain[r][i], sizeof bits);
            p->plain[r][i] = (float)bits * (float)(1 << i / 32 % 5);
        }
    memset(p->plain[1] + 40, 0, 70 * sizeof(float));
    for (size_t i = 110; i < 300; i++)
        p->plain[1][i] *= 0x1p-132f;
}

static blocks_x x_of(const uint8_t *x, ccmem_block_format format) {
    return (blocks_x){x, blocks_layout_of(format, UNITS), format};
}

static void pack(const blocks_ops *ops, const products *p, uint8_t *to, ccmem_block_format format) {
    const blocks_layout at = blocks_layout_of(format, UNITS);
    for (size_t r = 0; r < ROWS; r++)
        if (blocks_super(format))
            ops->pack_supers(to + r * at.bytes, &at, p->plain[r % BLOCKS_ROWS]);
        else
            ops->pack_runs(to + r * at.bytes, &at, p->plain[r % BLOCKS_ROWS], blocks_zero(format));
}

/* Blocks from the second on: the lanes of the first depend on its number. */
static void multiply(const blocks_ops *ops, products *p, float *sums, const uint8_t *x,
                     ccmem_block_format format, size_t first, size_t rows) {
    const blocks_x rows_of_x = x_of(x, format);
    memset(sums, 0, sizeof p->sums);
    const blocks_w w = {.first = p->blocks + first * block_formats[format].bytes,
                        .number = first,
                        .n = UNITS - first,
                        .rows = W_ROWS,
                        .bytes = block_formats[format].bytes,
                        .apart = rows * BLOCKS_LANES};
    ops->dot[format][rows > 1](sums, &w, &rows_of_x);
}

/* A block of rows of W times a panel, whose columns are the rows of x, over and over. */
static int check_panel(const blocks_panels *ops, products *p, ccmem_block_format format) {
    const blocks_layout at = blocks_layout_of(format, UNITS);
    const size_t bytes = block_formats[format].bytes, words = at.bytes / 4;
    blocks_panel panel = {.w = p->apart,
                          .ldw = APART_MAX,
                          .x = p->columns,
                          .at = {at.units, at.scale / 4, at.sums / 4, at.more / 4, words},
                          .lanes = p->lanes,
                          .sums = p->of_panel};
    int good = ops->width <= WIDTH && ops->height <= HEIGHT && at.bytes <= ROW_MAX &&
               ops->unpacked(format) * UNITS <= APART_MAX;
    for (size_t i = 0; good && i < ops->height; i++)
        ops->unpack[format](p->apart + i * APART_MAX, p->blocks + i * bytes, UNITS,
                            block_formats[format].elements / BLOCKS_RUN);
    for (size_t r = 0; good && r < ops->width; r += ROWS)
        ops->pack(p->columns + r, (const int8_t *)p->x, at.bytes, words);
    for (size_t v = 0; good && v < 2; v++) {
        memset(p->of_panel, 0, sizeof p->of_panel);
        ops->multiply[format][v](&panel);
        for (size_t i = 0; i < ops->height; i++) {
            const blocks_x x = x_of(p->same, format);
            memset(p->expected, 0, sizeof p->expected);
            const blocks_w w = {p->blocks + i * bytes, 0, UNITS, 1, 0, 0};
            float total[BLOCKS_ROWS];
            blocks_portable.dot[format][1](p->expected, &w, &x);
            blocks_portable.total(total, p->expected, BLOCKS_ROWS);
            for (size_t c = 0; c < (v + 1) * ops->lanes; c++)
                good &= p->of_panel[i * ops->width + c] == total[c % BLOCKS_ROWS];
        }
    }
    return good;
}

static int check(const blocks_ops *ops, products *p, ccmem_block_format format) {
    int good = 1;
    fill(p, format);
    memset(p->x, 0, sizeof p->x);
    memset(p->same, 0, sizeof p->same);
    pack(ops, p, p->x, format);
    pack(&blocks_portable, p, p->same, format);
    good &= !memcmp(p->x, p->same, sizeof p->x);
    for (size_t first = 0; first < 2; first++)
        for (size_t rows = 1; rows <= BLOCKS_ROWS; rows += BLOCKS_ROWS - 1) {
            multiply(ops, p, p->sums, p->x, format, first, rows);
            multiply(&blocks_portable, p, p->expected, p->same, format, first, rows);
            good &= !memcmp(p->sums, p->expected, sizeof p->sums);
        }
    float total[SUMS / BLOCKS_LANES], same[SUMS / BLOCKS_LANES];
    ops->total(total, p->sums, SUMS / BLOCKS_LANES);
    blocks_portable.total(same, p->expected, SUMS / BLOCKS_LANES);
    good &= !memcmp(total, same, sizeof same);
    for (size_t i = 0; i < SUMS; i++)
        good &= p->sums[i] == 0;
    return good && (!ops->panels || check_panel(ops->panels, p, format));
}

/* Against the blocks as floats, with x that loses nothing when it is quantised: whole numbers, of
 * which the largest is 127. */
static int check_floats(products *p, ccmem_block_format format) {
    const block_format *is = &block_formats[format];
    double sum = 0, size = 0;
    int good = 1;
    fill(p, format);
    if (ccmem_blocks_dequantize(format, p->blocks, UNITS, p->w) != CCMEM_OK)
        return 0;
    for (size_t i = 0; i < (size_t)UNITS * is->elements; i++) {
        const int x = i % BLOCKS_RUN ? (int)(i * 37 % 253) - 126 : 127;
        p->plain[0][i] = (float)x;
        sum += (double)x * p->w[i];
        size += fabs((double)x * p->w[i]);
    }
    pack(&blocks_portable, p, p->x, format);
    for (size_t rows = 1; rows <= BLOCKS_ROWS; rows += BLOCKS_ROWS - 1) {
        multiply(&blocks_portable, p, p->sums, p->x, format, 0, rows);
        float total;
        blocks_portable.total(&total, p->sums, 1);
        good &= fabs(total - sum) <= 1e-5 * size;
    }
    return good;
}

/* An infinite element makes the row's sums none; zeros count nothing. */
static int check_infinite(const blocks_ops *ops, products *p, ccmem_block_format format) {
    fill(p, format);
    memset(p->plain, 0, sizeof p->plain);
    p->plain[0][block_formats[format].elements * 3 / 2] = INFINITY;
    pack(ops, p, p->x, format);
    multiply(ops, p, p->sums, p->x, format, 0, BLOCKS_ROWS);
    float total[2];
    ops->total(total, p->sums, 2);
    return isnan(total[0]) && total[1] == 0;
}

ccmem_status selftest_blocks(const blocks_ops *ops) {
    int good = 1;
    products *p;
    if (posix_memalign((void **)&p, 64, sizeof *p))
        return CCMEM_ERR_NOMEM;
    fill_x(p);
    for (int i = 0; i < CCMEM_INT8_ROW && ops != &blocks_portable; i++)
        good &= check(ops, p, (ccmem_block_format)i);
    for (int i = 0; i < CCMEM_INT8_ROW; i++) {
        if (ops == &blocks_portable)
            good &= check_floats(p, (ccmem_block_format)i);
        good &= check_infinite(ops, p, (ccmem_block_format)i);
    }
    free(p);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
