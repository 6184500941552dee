/* SPDX-License-Identifier: Apache-2.0
 * Products of quantised blocks: each format's kernels, and what they take of x, are the portable
 * ones' to the bit; and those agree with the blocks turned into floats. */
#include "selftest/selftest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    UNITS = 5, /* blocks of a row: pairs, and one that is left */
    BYTES = UNITS * BLOCK_BYTES_MAX,
    ELEMENTS = UNITS * BLOCK_SUPER,
    SUMS = BLOCKS_ROWS * BLOCKS_LANES
};

/* Packed x of a row, whatever it consists of. */
typedef struct packed {
    union {
        blocks_run run[UNITS * BLOCK_SUPER / BLOCKS_RUN];
        blocks_super super[UNITS];
    };
    _Alignas(64) float scale[UNITS * BLOCK_SUPER / BLOCKS_RUN];
} packed;

typedef struct products {
    _Alignas(64) float sums[SUMS], expected[SUMS];
    _Alignas(64) packed x[BLOCKS_ROWS], same[BLOCKS_ROWS];
    float plain[BLOCKS_ROWS][ELEMENTS], w[ELEMENTS];
    uint8_t blocks[BYTES];
} products;

/* Any bits, but scales that are finite and not too far from each other. */
static void fill(products *p, ccmem_block_format format) {
    static const int8_t least[] = {-128, -128, -127, -1, 0, 1, 127, -128};
    const block_format *is = &block_formats[format];
    selftest_fill(p->blocks, sizeof p->blocks, 21 + (uint64_t)format);
    if (is->bytes > is->elements) /* of signed bytes: those whose sums are the largest */
        for (size_t i = 0; i + sizeof least <= sizeof p->blocks; i += 3 * sizeof least)
            memcpy(p->blocks + i, least, sizeof least);
    for (size_t i = 0; i < UNITS; i++) {
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

static void pack(const blocks_ops *ops, const products *p, packed *to, ccmem_block_format format) {
    const block_format *is = &block_formats[format];
    for (size_t r = 0; r < BLOCKS_ROWS; r++)
        if (is->elements == BLOCK_SUPER)
            ops->pack_supers(to[r].super, to[r].scale, p->plain[r], UNITS);
        else
            ops->pack_runs(to[r].run, to[r].scale, p->plain[r],
                           (size_t)UNITS * is->elements / BLOCKS_RUN, blocks_zero(format),
                           is->offset);
}

static blocks_x x_of(const packed *x, ccmem_block_format format) {
    return (blocks_x){(const uint8_t *)x, x->scale, sizeof *x, format};
}

/* Blocks from the second on: the lanes of the first depend on its number. */
static void multiply(const blocks_ops *ops, products *p, float *sums, const packed *x,
                     ccmem_block_format format, size_t first, size_t rows) {
    const blocks_x rows_of_x = x_of(x, format);
    memset(sums, 0, sizeof p->sums);
    ops->dot[format][rows > 1](sums, p->blocks + first * block_formats[format].bytes, UNITS - first,
                               &rows_of_x, first);
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
    for (size_t r = 0; r < BLOCKS_ROWS; r++) {
        const float sum = ops->total(p->sums + r * BLOCKS_LANES);
        good &= sum == blocks_portable.total(p->expected + r * BLOCKS_LANES);
    }
    for (size_t i = 0; i < SUMS; i++)
        good &= p->sums[i] == 0;
    return good;
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
        good &= fabs(blocks_portable.total(p->sums) - sum) <= 1e-5 * size;
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
    const float none = ops->total(p->sums), zero = ops->total(p->sums + BLOCKS_LANES);
    return isnan(none) && zero == 0;
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
