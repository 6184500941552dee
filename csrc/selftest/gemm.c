/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x of a tier: small whole numbers, whose sums are exact in any
 * order, and conversions against the portable tier. */
#include "selftest/selftest.h"

#include "kernels/gemm.h"
#include "kernels/gemv.h"
#include "simd/scalar.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
    ELEMENTS = 102, /* neither whole vectors nor, as pairs, an even number */
    WORDS = 144,    /* of a row, with zeros */
    WIDTH = 32,     /* rows of x in a panel at most */
    HEIGHT = 24,    /* rows of W, in whole blocks of every tier */
    LINE = 64
};

typedef struct several {
    _Alignas(LINE) float w[HEIGHT][WORDS];
    _Alignas(LINE) float x[WIDTH][WORDS];
    _Alignas(LINE) float panel[WORDS * WIDTH];
    _Alignas(LINE) float sums[HEIGHT * WIDTH];
    float y[WIDTH][HEIGHT];
    float scale[HEIGHT], bias[HEIGHT];
    uint8_t stored[WORDS * 8];     /* elements, and what a conversion may read behind them */
    float expected[WIDTH][HEIGHT]; /* the sums; last, so that fill() can leave them */
} several;

static int w_of(size_t i, size_t k) { return (int)((i * 7 + k * 5) % 16) - 8; }

static int x_of(size_t r, size_t k) { return (int)(k * (r + 1) % 7); }

static void sum_up(several *s) {
    int w[HEIGHT][ELEMENTS], x[WIDTH][ELEMENTS];
    for (size_t k = 0; k < ELEMENTS; k++) {
        for (size_t i = 0; i < HEIGHT; i++)
            w[i][k] = w_of(i, k);
        for (size_t r = 0; r < WIDTH; r++)
            x[r][k] = x_of(r, k);
    }
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++) {
            int sum = 0;
            for (size_t k = 0; k < ELEMENTS; k++)
                sum += w[i][k] * x[r][k];
            s->expected[r][i] = (float)sum;
        }
}

static void fill(const gemm_ops *ops, several *s, ccmem_dtype dtype) {
    const size_t unit = ops->unit;
    const ccmem_dtype x_dtype = unit == 2 ? CCMEM_BF16 : CCMEM_F32;
    memset(s, 0, offsetof(several, expected));
    for (size_t i = 0; i < HEIGHT; i++) {
        for (size_t k = 0; k < ELEMENTS; k++)
            selftest_number(dtype, s->stored + k * dtype_size(dtype), w_of(i, k));
        ops->convert[dtype](s->w[i], s->stored, ELEMENTS);
        memset((uint8_t *)s->w[i] + ELEMENTS * unit, 0, sizeof s->w[i] - ELEMENTS * unit);
        s->scale[i] = (float)(1 << i % 3);
        s->bias[i] = (float)i;
    }
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t k = 0; k < ELEMENTS; k++)
            selftest_number(x_dtype, (uint8_t *)s->x[r] + k * unit, x_of(r, k));
}

/* 1 when y is right for `rows` rows of x and h of W, and nothing else was written. */
static int right(several *s, const gemm_epilogue *end, size_t rows, size_t h, float before) {
    int good = 1;
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++) {
            float y = before, v = s->expected[r][i];
            if (end->add)
                v += before;
            if (end->scale)
                v = v * s->scale[i] + s->bias[i];
            if (r < rows && i < h)
                y = v;
            if (!end->halves)
                good &= s->y[r][i] == y;
            else if (r < rows && i < h)
                good &= ((uint16_t *)s->y)[r * HEIGHT + i] == bfloat16_of(y);
        }
    return good;
}

/* What may become of the sums: with a scale and a bias or without, added, rounded. */
static gemm_epilogue end_of(several *s, unsigned number, float before) {
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++)
            s->y[r][i] = before;
    return (gemm_epilogue){.scale = number ? s->scale : NULL,
                           .bias = number ? s->bias : NULL,
                           .y = s->y,
                           .ldy = HEIGHT,
                           .halves = number == 2,
                           .add = number == 1};
}

static int check_dots(const gemm_ops *ops, several *s) {
    const size_t vectors = WORDS / ops->lanes, at = vectors / 3 * ops->lanes;
    int good = 1;
    for (unsigned number = 0; number < 3; number++)
        for (size_t rows = 1; rows <= ops->dot_rows; rows++)
            for (size_t h = 1; h <= GEMM_DOT_HEIGHT; h++) {
                gemm_epilogue end = end_of(s, number, 3.0f);
                ops->dot[rows - 1](s->w[0], WORDS, h, (const uint8_t *)s->x, WORDS, vectors, NULL,
                                   0, &end);
                good &= right(s, &end, rows, h, 3.0f);
                end = end_of(s, number, 3.0f);
                ops->dot[rows - 1](s->w[0], WORDS, h, (const uint8_t *)s->x, WORDS, vectors / 3,
                                   s->sums, 0, NULL);
                ops->dot[rows - 1](s->w[0] + at, WORDS, h, (const uint8_t *)(s->x[0] + at), WORDS,
                                   vectors - vectors / 3, s->sums, 1, &end);
                good &= right(s, &end, rows, h, 3.0f);
            }
    return good;
}

static int check_panels(const gemm_ops *ops, several *s) {
    static const size_t heights[] = {1, 8, 13, HEIGHT};
    int good = 1;
    for (size_t r = 0; r < ops->width; r += 8)
        ops->transpose(s->panel + r, (const uint8_t *)s->x[r], sizeof s->x[0], WORDS);
    for (int both = 0; both < 2; both++) {
        for (size_t i = 0; i < HEIGHT * WIDTH; i++)
            s->sums[i] = 5.0f; /* which the first words do not add to */
        for (size_t k = 0; k < WORDS; k += WORDS / 2)
            for (size_t i = 0; i < HEIGHT; i += ops->height[both])
                ops->panel[both](s->sums + i * ops->width, s->w[i] + k, WORDS,
                                 s->panel + k * ops->width, WORDS / 2, k > 0,
                                 (gemm_ahead){s->panel, s->panel});
        const size_t most = both ? ops->width : ops->lanes;
        for (unsigned number = 0; number < 3; number++)
            for (size_t j = 0; j < sizeof heights / sizeof *heights; j++)
                for (size_t rows = most - 5; rows <= most; rows++) {
                    gemm_epilogue end = end_of(s, number, 3.0f);
                    ops->finish(s->sums, heights[j], rows, &end);
                    good &= right(s, &end, rows, heights[j], 3.0f);
                }
    }
    return good;
}

static int check_conversion(const gemm_ops *ops, several *s, ccmem_dtype dtype) {
    /* Both signs of infinities, subnormal and largest numbers of both 16-bit types. */
    static const uint16_t special[] = {0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff,
                                       0xfbff, 0x7c00, 0xfc00, 0x7f7f, 0x7f80, 0xff80,
                                       0x007f, 0x0080, 0x8000, 0x0000};
    int good = 1;
    selftest_fill(s->stored, sizeof s->stored, 3);
    memcpy(s->stored, special, sizeof special);
    ops->convert[dtype](s->w[0], s->stored, ELEMENTS);
    gemm_portable.convert[dtype](s->w[1], s->stored, ELEMENTS);
    for (size_t k = 0; k < ELEMENTS; k++)
        good &= s->w[0][k] == s->w[1][k] || (isnan(s->w[0][k]) && isnan(s->w[1][k]));
    return good;
}

ccmem_status selftest_gemm(const gemm_ops *ops) {
    int good = 1;
    several *s;
    if (posix_memalign((void **)&s, LINE, sizeof *s))
        return CCMEM_ERR_NOMEM;
    sum_up(s);
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        if (!ops->convert[dtype])
            continue;
        fill(ops, s, (ccmem_dtype)dtype);
        good &= check_dots(ops, s) & check_panels(ops, s);
        if (ops->unit == sizeof(float))
            good &= check_conversion(ops, s, (ccmem_dtype)dtype);
    }
    free(s);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}

ccmem_status selftest_gemm_bf16(const gemm_ops *ops) { return selftest_gemm(ops); }
