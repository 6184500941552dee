/* SPDX-License-Identifier: Apache-2.0
 * Rows of x in panels, as gemm_panels.c multiplies them. */
#include "product/gemm_x.h"

#include <string.h>

#include "platform/round.h"
#include "platform/threads.h"

typedef struct x_call {
    const gemm_call *c;
    uint64_t first;
    size_t rows;
    float *to;
} x_call;

/* The words of one panel that are left over by blocks of 8 rows and 4 words. */
static void transpose_rest(const gemm_call *c, float *to, const uint8_t *x, size_t rows,
                           size_t transposed) {
    const size_t width = c->ops->width;
    const size_t bytes = (size_t)c->p.in_features * c->unit, n = gemm_words(c, c->p.in_features);
    for (size_t r = 0; r < width; r++)
        for (size_t j = r < rows / 8 * 8 ? transposed : 0; j < n; j++) {
            const size_t left = bytes - j * GEMM_WORD;
            float word = 0.0f;
            if (r < rows)
                memcpy(&word, x + r * c->p.ldx * c->unit + j * GEMM_WORD,
                       left < GEMM_WORD ? left : GEMM_WORD);
            to[j * width + r] = word;
        }
}

static void pack_panels(void *arg, uint64_t begin, uint64_t end) {
    const x_call *l = arg;
    const gemm_call *c = l->c;
    const size_t width = c->ops->width, n = gemm_words(c, c->p.in_features);
    const size_t stride = (size_t)c->p.ldx * c->unit, piece = c->sizes->transpose;
    const size_t whole = (size_t)c->p.in_features * c->unit / GEMM_WORD / 4 * 4;
    for (uint64_t i = begin; i < end; i++) {
        const size_t rows = l->rows - i * width < width ? l->rows - i * width : width;
        const uint8_t *x = gemm_x(c, l->first + i * width);
        float *to = l->to + i * n * width;
        for (size_t k = 0; k < whole; k += piece)
            for (size_t r = 0; r + 8 <= rows; r += 8)
                c->ops->transpose(to + k * width + r, x + r * stride + k * GEMM_WORD, stride,
                                  whole - k < piece ? whole - k : piece);
        transpose_rest(c, to, x, rows, whole);
    }
}

uint64_t gemm_x_bytes(const gemm_call *c, uint64_t rows) {
    return round_up((size_t)rows, c->ops->width) * gemm_words(c, c->p.in_features) * GEMM_WORD;
}

void gemm_x_pack(const gemm_call *c, uint64_t first, size_t rows, float *to) {
    const size_t width = c->ops->width;
    x_call l = {.c = c, .first = first, .rows = rows, .to = to};
    parallel_for((rows + width - 1) / width, c->sizes->pack_grain / gemm_x_bytes(c, width) + 1,
                 pack_panels, &l);
}
