/* SPDX-License-Identifier: Apache-2.0
 * Rows of x in panels, as gemm_panels.c multiplies them. */
#include "product/gemm_x.h"

#include <string.h>

#include "memory/secret.h"
#include "platform/round.h"

enum {
    GROUP = 8, /* rows that are transposed at once */
    PIECE = 64 /* words of them, a multiple of 4: they fit into an L1 */
};

/* Transposes n <= PIECE words of fewer rows than a group has: a copy with rows of zeros. */
static void transpose_some(const gemm_call *c, float *to, const uint8_t *x, size_t stride,
                           size_t rows, size_t n) {
    float group[GROUP][PIECE] = {{0}};
    for (size_t r = 0; r < rows; r++)
        copy_secret(group[r], x + r * stride, n * GEMM_WORD);
    c->ops->transpose(to, (const uint8_t *)group, sizeof group[0], n);
    ccmem_wipe(group, sizeof group);
}

/* The words from number `from` on, which are left over by blocks of 4. */
static void copy_rest(const gemm_call *c, float *to, const uint8_t *x, size_t stride, size_t rows,
                      size_t from) {
    const size_t bytes = (size_t)c->p.in_features * c->unit, n = gemm_words(c, c->p.in_features);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = from; j < n; j++) {
            const size_t left = bytes - j * GEMM_WORD;
            float word = 0.0f;
            memcpy(&word, x + r * stride + j * GEMM_WORD, left < GEMM_WORD ? left : GEMM_WORD);
            to[j * c->ops->width + r] = word;
        }
}

uint64_t gemm_x_bytes(const gemm_call *c, uint64_t rows) {
    return round_up((size_t)rows, c->ops->width) * gemm_words(c, c->p.in_features) * GEMM_WORD;
}

void gemm_x_pack(const gemm_call *c, uint64_t first, size_t rows, float *to) {
    const size_t width = c->ops->width, stride = (size_t)c->p.ldx * c->unit;
    const size_t whole = (size_t)c->p.in_features * c->unit / GEMM_WORD / 4 * 4;
    const uint8_t *x = gemm_x(c, first);
    for (size_t k = 0; k < whole; k += PIECE) {
        const size_t n = whole - k < PIECE ? whole - k : PIECE;
        for (size_t r = 0; r < rows; r += GROUP) {
            const uint8_t *from = x + r * stride + k * GEMM_WORD;
            if (rows - r < GROUP)
                transpose_some(c, to + k * width + r, from, stride, rows - r, n);
            else
                c->ops->transpose(to + k * width + r, from, stride, n);
        }
    }
    copy_rest(c, to, x, stride, rows, whole);
}
