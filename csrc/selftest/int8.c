/* SPDX-License-Identifier: Apache-2.0
 * Products of int8 of a tier: rows of x against the portable tier's, bit by bit, and sums against
 * those of plain loops, with the numbers that saturating instructions get wrong among them. */
#include "selftest/selftest.h"

#include "kernels/int8.h"
#include "platform/float_env.h"
#include "simd/scalar.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ELEMENTS = 150, /* not whole vectors, nor an even number of words */
    ROW = 256,      /* bytes of a row of W or x, with zeros */
    SHORTS = 576,   /* of W as it lies beside panels */
    WIDTH = 32,     /* rows of x in a panel at most */
    HEIGHT = 24,    /* rows of W, in whole blocks of every table */
    LINE = 64
};

typedef struct whole {
    _Alignas(LINE) uint8_t w[HEIGHT][ROW];
    _Alignas(LINE) int8_t x[WIDTH][ROW];
    _Alignas(LINE) uint8_t converted[HEIGHT][SHORTS];
    _Alignas(LINE) int32_t panel[ROW * WIDTH];
    _Alignas(LINE) int32_t sums[HEIGHT * WIDTH];
    int8_row row[WIDTH];
    float scale[HEIGHT], bias[HEIGHT];
    int32_t expected[WIDTH][HEIGHT];
    float y[WIDTH][HEIGHT];
} whole;

static void fill(whole *s) {
    memset(s, 0, sizeof *s);
    selftest_fill(s->w[0], sizeof s->w, 1);
    memset(s->w[0], 0x80, ROW); /* -128 */
    memset(s->w[1], 0x7f, ROW);
    for (size_t r = 0; r < WIDTH; r++) {
        selftest_fill((uint8_t *)s->x[r], ELEMENTS, 2 + r);
        for (size_t k = 0; k < ELEMENTS; k++)
            if (r < 2 || s->x[r][k] == -128)
                s->x[r][k] = r == 1 ? -127 : 127;
        s->row[r].scale = (float)(1 << r % 4);
        for (size_t k = 0; k < ELEMENTS; k++)
            s->row[r].sum += s->x[r][k];
    }
    for (size_t i = 0; i < HEIGHT; i++) {
        s->scale[i] = (float)(1 << i % 3);
        s->bias[i] = (float)i;
    }
}

/* The sums over the first n elements. */
static void sum_up(whole *s, size_t n) {
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++) {
            s->expected[r][i] = 0;
            for (size_t k = 0; k < n; k++)
                s->expected[r][i] += (int8_t)s->w[i][k] * s->x[r][k];
        }
}

/* ---- x --------------------------------------------------------------------------------------- */

/* One row, rounded as the portable tier does it, and nothing else written. */
static int same_row(const int8_ops *ops, int half, const void *x, size_t n) {
    _Alignas(LINE) int8_t q[2][ROW + LINE];
    int8_row row[2] = {{1.0f, -1}, {1.0f, -1}};
    memset(q, 0x55, sizeof q);
    ops->quantise[half](q[0], &row[0], x, n);
    int8_portable.quantise[half](q[1], &row[1], x, n);
    return !memcmp(q[0], q[1], sizeof q[0]) && row[0].sum == row[1].sum &&
           (row[0].scale == row[1].scale || (isnan(row[0].scale) && isnan(row[1].scale)));
}

static int check_rounding(const int8_ops *ops) {
    /* What the largest number may be, and what is not finite. */
    static const float most[] = {1.0f, 127.0f,      0x1p-99f, 0x1p-100f, 0x1p-101f, 0x1p-149f,
                                 0.0f, 0x1.fep127f, INFINITY, -INFINITY, NAN};
    float x[ELEMENTS];
    uint16_t half[ELEMENTS];
    int good = 1;
    for (size_t j = 0; j < sizeof most / sizeof *most; j++)
        for (size_t n = ELEMENTS - 40; n <= ELEMENTS; n++) {
            const float size = isfinite(most[j]) ? most[j] : 1.0f;
            for (size_t i = 0; i < n; i++) { /* halves of steps among them */
                x[i] = size * ((float)((int)(i * 37 % 509) - 254) / 254.0f);
                half[i] = bfloat16_of(x[i]);
            }
            x[n - 1 - j] = most[j];
            half[n - 1 - j] = bfloat16_of(most[j]);
            good &= same_row(ops, 0, x, n) & same_row(ops, 1, half, n);
        }
    return good;
}

/* Numbers that both types have, and what becomes of them. */
static int check_known(const int8_ops *ops) {
    static const float x[] = {-127.0f, 0.5f, 1.5f, -2.5f, 126.5f, 3.0f};
    static const int8_t expected[LINE] = {-127, 0, 2, -2, 126, 3};
    uint16_t half[sizeof x / sizeof *x];
    int good = 1;
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        half[i] = bfloat16_of(x[i]);
    for (int h = 0; h < 2; h++) {
        int8_t q[LINE] = {0};
        int8_row row = {0};
        ops->quantise[h](q, &row, h ? (const void *)half : x, sizeof x / sizeof *x);
        good &= !memcmp(q, expected, LINE) && row.scale == 1.0f && row.sum == 2;
    }
    return good;
}

/* ---- sums ------------------------------------------------------------------------------------ */

static int8_epilogue end_of(const int8_ops *ops, whole *s, unsigned number) {
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++)
            s->y[r][i] = -3.0f;
    return (int8_epilogue){.row = s->row,
                           .excess = ops->excess,
                           .scale = s->scale,
                           .bias = number ? s->bias : NULL,
                           .y = s->y,
                           .ldy = HEIGHT,
                           .halves = number == 2};
}

/* 1 when y is right for `rows` rows of x and h of W, and nothing else was written. */
static int right(const whole *s, const int8_epilogue *end, size_t rows, size_t h) {
    int good = 1;
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++) {
            float y = -3.0f;
            if (r < rows && i < h)
                y = (float)s->expected[r][i] * (s->row[r].scale * s->scale[i]) +
                    (end->bias ? s->bias[i] : 0.0f);
            if (!end->halves)
                good &= s->y[r][i] == y;
            else if (r < rows && i < h)
                good &= ((const uint16_t *)s->y)[r * HEIGHT + i] == bfloat16_of(y);
        }
    return good;
}

/* Rows in two parts, of which the first ends inside a vector. */
static int check_dots(const int8_ops *ops, whole *s) {
    static const size_t cuts[] = {0, 64, 77};
    int good = 1;
    for (size_t rows = 1; rows <= ops->dot_rows; rows++)
        for (size_t h = 1; h <= INT8_DOT_HEIGHT; h++)
            for (size_t c = 0; c < 3; c++) {
                memset(s->sums, 0, sizeof s->sums);
                ops->dot[rows - 1](s->sums, HEIGHT, s->w[0], ROW, h, s->x[0], ROW, cuts[c]);
                ops->dot[rows - 1](s->sums, HEIGHT, s->w[0] + cuts[c], ROW, h, s->x[0] + cuts[c],
                                   ROW, 192 - cuts[c]);
                for (size_t r = 0; r < WIDTH; r++)
                    for (size_t i = 0; i < HEIGHT; i++) {
                        const uint32_t more = (uint32_t)ops->excess * (uint32_t)s->row[r].sum;
                        const int32_t sum = (int32_t)((uint32_t)s->sums[r * HEIGHT + i] - more);
                        good &= r < rows && i < h ? sum == s->expected[r][i]
                                                  : s->sums[r * HEIGHT + i] == 0;
                    }
            }
    return good;
}

static int check_finish_dot(const int8_ops *ops, whole *s) {
    static const size_t heights[] = {1, 8, 13, HEIGHT};
    int good = 1;
    for (size_t r = 0; r < WIDTH; r++)
        for (size_t i = 0; i < HEIGHT; i++)
            s->sums[r * HEIGHT + i] = s->expected[r][i] + ops->excess * s->row[r].sum;
    for (unsigned number = 0; number < 3; number++)
        for (size_t j = 0; j < sizeof heights / sizeof *heights; j++)
            for (size_t rows = 1; rows <= WIDTH; rows += 5) {
                const int8_epilogue end = end_of(ops, s, number);
                ops->finish_dot(s->sums, HEIGHT, heights[j], rows, &end);
                good &= right(s, &end, rows, heights[j]);
            }
    return good;
}

static int check_panels(const int8_ops *ops, whole *s) {
    static const size_t heights[] = {1, 8, 13, HEIGHT};
    const size_t words = (ELEMENTS * ops->unit + 3) / 4, first = 16;
    int good = 1;
    memset(s->panel, 0x55, sizeof s->panel);
    for (size_t r = 0; r < ops->width; r += INT8_TRANSPOSED)
        ops->pack(s->panel + r, s->x[r], ROW, (words + 3) / 4 * 4);
    for (size_t i = 0; i < HEIGHT; i++)
        ops->convert(s->converted[i], s->w[i], ELEMENTS);
    for (int both = 0; both < 2; both++) {
        memset(s->sums, 0, sizeof s->sums);
        for (size_t i = 0; i < HEIGHT; i += ops->height) {
            int32_t *sums = s->sums + i * ops->width;
            ops->panel[both](sums, s->converted[i], SHORTS, s->panel, first);
            ops->panel[both](sums, s->converted[i] + first * 4, SHORTS,
                             s->panel + first * ops->width, words - first);
        }
        const size_t most = both ? ops->width : ops->lanes;
        for (unsigned number = 0; number < 3; number++)
            for (size_t j = 0; j < sizeof heights / sizeof *heights; j++)
                for (size_t rows = most - 5; rows <= most; rows++) {
                    const int8_epilogue end = end_of(ops, s, number);
                    ops->finish(s->sums, heights[j], rows, &end);
                    good &= right(s, &end, rows, heights[j]);
                }
    }
    return good;
}

ccmem_status selftest_int8(const int8_ops *ops) {
    whole *s;
    if (posix_memalign((void **)&s, LINE, sizeof *s))
        return CCMEM_ERR_NOMEM;
    const float_env env = float_env_default();
    fill(s);
    sum_up(s, ELEMENTS);
    const int good = check_rounding(ops) & check_known(ops) & check_dots(ops, s) &
                     check_finish_dot(ops, s) & check_panels(ops, s);
    float_env_restore(env);
    free(s);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
