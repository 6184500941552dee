/* SPDX-License-Identifier: Apache-2.0
 * Products of int8 in plain C: the reference for the other tiers. */
#include "kernels/int8.h"

#include <math.h>
#include <string.h>

#include "simd/scalar.h"

/* A product and a sum in one instruction are rounded once, not twice as everywhere else. -O3 makes
 * these loops five times as long, and no faster than the pages are opened here. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("O2", "fp-contract=off")
#endif

enum { LANES = 8, WIDTH = 2 * LANES, HEIGHT = 4, DOT_ROWS = 3, WORD = 4 };

/* ---- x --------------------------------------------------------------------------------------- */

static float number(int half, const void *x, size_t i) {
    const uint8_t *p = x;
    return half ? element_from_bf16(p + 2 * i) : element_from_f32(p + 4 * i);
}

/* Without branches on what the numbers are. */
static void quantise(int half, int8_t *to, int8_row *row, const void *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t size = bits_of(number(half, x, i)) & 0x7fffffff, more = below(most, size);
        most = (size & more) | (most & ~more);
    }
    const uint32_t finite = below(most, 0x7f800000);
    const byte_scale s = byte_scale_of(float_of_bits(most & finite));
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        const float v = float_of_bits(bits_of(number(half, x, i)) & finite);
        /* Adding 3 * 2^22 rounds to a whole number, which is then in the low bits. */
        const float rounded = v * s.enlarge * s.per_step + 0x3p22f;
        to[i] = (int8_t)bits_of(rounded);
        sum += (uint32_t)(int32_t)to[i];
    }
    memset(to + n, 0, (INT8_VECTOR_MAX - n % INT8_VECTOR_MAX) % INT8_VECTOR_MAX);
    *row = (int8_row){.scale = pick(finite, s.scale, NAN), .sum = (int32_t)sum};
}

static void quantise_f32(int8_t *to, int8_row *row, const void *x, size_t n) {
    quantise(0, to, row, x, n);
}

static void quantise_bf16(int8_t *to, int8_row *row, const void *x, size_t n) {
    quantise(1, to, row, x, n);
}

/* ---- sums ------------------------------------------------------------------------------------ */

static void dot(size_t rows, int32_t *sums, size_t lds, const uint8_t *w, size_t ldw, size_t h,
                const int8_t *x, size_t ldx, size_t n) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < h; i++) {
            const int8_t *a = (const int8_t *)w + i * ldw, *b = x + r * ldx;
            int32_t sum = 0;
            for (size_t k = 0; k < n; k++)
                sum += a[k] * b[k];
            sums[r * lds + i] += sum;
        }
}

#define DOT(rows)                                                                                  \
    static void dot_##rows(int32_t *sums, size_t lds, const uint8_t *w, size_t ldw, size_t h,      \
                           const int8_t *x, size_t ldx, size_t n) {                                \
        dot(rows, sums, lds, w, ldw, h, x, ldx, n);                                                \
    }
DOT(1)
DOT(2)
DOT(3)
#undef DOT

static void convert(void *to, const uint8_t *from, size_t n) { memcpy(to, from, n); }

static void pack(int32_t *to, const int8_t *x, size_t ldx, size_t words) {
    for (size_t r = 0; r < INT8_TRANSPOSED; r++)
        for (size_t j = 0; j < words; j++)
            memcpy(to + j * WIDTH + r, x + r * ldx + j * WORD, WORD);
}

static void panel(size_t lanes, int32_t *sums, const uint8_t *w, size_t ldw, const int32_t *x,
                  size_t n) {
    const int8_t *b = (const int8_t *)x;
    for (size_t i = 0; i < HEIGHT; i++) {
        const int8_t *a = (const int8_t *)w + i * ldw;
        for (size_t r = 0; r < lanes; r++) {
            int32_t sum = 0;
            for (size_t k = 0; k < n; k++)
                for (size_t j = 0; j < WORD; j++)
                    sum += a[k * WORD + j] * b[(k * WIDTH + r) * WORD + j];
            sums[i * WIDTH + r] += sum;
        }
    }
}

static void panel_1(int32_t *sums, const uint8_t *w, size_t ldw, const int32_t *x, size_t n) {
    panel(LANES, sums, w, ldw, x, n);
}

static void panel_2(int32_t *sums, const uint8_t *w, size_t ldw, const int32_t *x, size_t n) {
    panel(WIDTH, sums, w, ldw, x, n);
}

/* ---- y --------------------------------------------------------------------------------------- */

static void put(float sum, const int8_epilogue *end, size_t r, size_t i) {
    const float scale = end->row[r].scale * end->scale[i];
    float v = sum * scale;
    if (end->bias)
        v += end->bias[i];
    if (end->halves)
        ((uint16_t *)end->y)[r * end->ldy + i] = bfloat16_of(v);
    else
        ((float *)end->y)[r * end->ldy + i] = v;
}

static int32_t whole(int32_t sum, const int8_epilogue *end, size_t r) {
    return (int32_t)((uint32_t)sum - (uint32_t)end->excess * (uint32_t)end->row[r].sum);
}

static void finish(const int32_t *sums, size_t h, size_t rows, const int8_epilogue *end) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < h; i++)
            put((float)whole(sums[i * WIDTH + r], end, r), end, r, i);
}

static void finish_dot(const int32_t *sums, size_t lds, size_t h, size_t rows,
                       const int8_epilogue *end) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < h; i++)
            put((float)whole(sums[r * lds + i], end, r), end, r, i);
}

void int8_finish_wide(const int64_t *sums, size_t width, size_t h, size_t rows,
                      const int64_t *total, const int8_epilogue *end) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < h; i++)
            put((float)(sums[i * width + r] - end->excess * total[r]), end, r, i);
}

const int8_ops int8_portable = {.lanes = LANES,
                                .width = WIDTH,
                                .height = HEIGHT,
                                .dot_rows = DOT_ROWS,
                                .few_rows = 3,
                                .unit = 1,
                                .quantise = {quantise_f32, quantise_bf16},
                                .dot = {dot_1, dot_2, dot_3},
                                .convert = convert,
                                .pack = pack,
                                .panel = {panel_1, panel_2},
                                .finish = finish,
                                .finish_dot = finish_dot};
