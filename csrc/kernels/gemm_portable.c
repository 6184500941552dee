/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x in plain C: the reference for the other tiers. */
#include <string.h>

#include "kernels/gemm.h"
#include "simd/scalar.h"

enum { LANES = 8, WIDTH = 2 * LANES, HEIGHT = 4, DOT_ROWS = 3 };

/* ---- conversions ----------------------------------------------------------------------------- */

#define CONVERSION(name, element, operation)                                                       \
    static void name(void *to, const uint8_t *from, size_t n) {                                    \
        float *out = to;                                                                           \
        for (size_t i = 0; i < n; i++)                                                             \
            out[i] = operation(from + i * (element));                                              \
    }
CONVERSION(convert_f32, 4, element_from_f32)
CONVERSION(convert_f16, 2, element_from_f16)
CONVERSION(convert_bf16, 2, element_from_bf16)
CONVERSION(convert_i8, 1, element_from_i8)

/* ---- sums ------------------------------------------------------------------------------------ */

static void put(float sum, const gemm_epilogue *end, size_t r, size_t i) {
    const size_t to = r * end->ldy + i;
    if (end->add)
        sum = ((float *)end->y)[to] + sum;
    if (end->scale)
        sum *= end->scale[i];
    if (end->bias)
        sum += end->bias[i];
    if (end->halves)
        ((uint16_t *)end->y)[to] = bfloat16_of(sum);
    else
        ((float *)end->y)[to] = sum;
}

static void dot(size_t rows, const float *w, size_t ldw, size_t h, const uint8_t *x, size_t ldx,
                size_t vectors, float *kept, int more, const gemm_epilogue *end) {
    for (size_t i = 0; i < h; i++)
        for (size_t r = 0; r < rows; r++) {
            const float *a = w + i * ldw, *b = (const float *)(const void *)x + r * ldx;
            float *part = kept + (r * GEMM_DOT_HEIGHT + i) * LANES, sum[LANES] = {0};
            if (more)
                memcpy(sum, part, sizeof sum);
            for (size_t k = 0; k < vectors * LANES; k += LANES)
                for (size_t j = 0; j < LANES; j++)
                    sum[j] += a[k + j] * b[k + j];
            if (!end) {
                memcpy(part, sum, sizeof sum);
                continue;
            }
            for (size_t half = LANES / 2; half; half /= 2)
                for (size_t j = 0; j < half; j++)
                    sum[j] += sum[j + half];
            put(sum[0], end, r, i);
        }
}

#define DOT(rows)                                                                                  \
    static void dot_##rows(const float *w, size_t ldw, size_t h, const uint8_t *x, size_t ldx,     \
                           size_t vectors, float *kept, int more, const gemm_epilogue *end) {      \
        dot(rows, w, ldw, h, x, ldx, vectors, kept, more, end);                                    \
    }
DOT(1)
DOT(2)
DOT(3)

static void panel(size_t lanes, float *sums, const float *w, size_t ldw, const float *x, size_t n,
                  int add) {
    for (size_t i = 0; i < HEIGHT && !add; i++)
        memset(sums + i * WIDTH, 0, lanes * sizeof *sums);
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < HEIGHT; i++)
            for (size_t r = 0; r < lanes; r++)
                sums[i * WIDTH + r] += w[i * ldw + k] * x[k * WIDTH + r];
}

static void panel_1(float *sums, const float *w, size_t ldw, const float *x, size_t n, int add,
                    gemm_ahead ahead) {
    (void)ahead;
    panel(LANES, sums, w, ldw, x, n, add);
}

static void panel_2(float *sums, const float *w, size_t ldw, const float *x, size_t n, int add,
                    gemm_ahead ahead) {
    (void)ahead;
    panel(WIDTH, sums, w, ldw, x, n, add);
}

static void transpose(float *to, const uint8_t *from, size_t stride, size_t n) {
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < n; j++)
            memcpy(to + j * WIDTH + i, from + i * stride + j * sizeof *to, sizeof *to);
}

static void finish(const float *sums, size_t h, size_t rows, const gemm_epilogue *end) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < h; i++)
            put(sums[i * WIDTH + r], end, r, i);
}

const gemm_ops gemm_portable = {.lanes = LANES,
                                .width = WIDTH,
                                .height = {HEIGHT, HEIGHT},
                                .dot_rows = DOT_ROWS,
                                .unit = sizeof(float),
                                .convert = {convert_f32, convert_f16, convert_bf16, convert_i8},
                                .dot = {dot_1, dot_2, dot_3},
                                .panel = {panel_1, panel_2},
                                .ahead_words = 8,
                                .transpose = transpose,
                                .finish = finish};
