/* SPDX-License-Identifier: Apache-2.0
 * What both ways to multiply several rows of x have in common: along k (gemm_few.c) and by panels
 * (gemm_panels.c). gemm.c chooses. */
#ifndef CCMEM_GEMM_CALL_H
#define CCMEM_GEMM_CALL_H

#include "platform/threads.h"
#include "product/fetch.h"
#include "product/linear.h"
#include "store/store.h"
#include "tiers/tiers.h"

enum {
    GEMM_WORD = 4,       /* bytes of what kernels multiply: a float32, or two bfloat16 */
    GEMM_LINE_WORDS = 16 /* also what a conversion may write past the last of a row */
};

typedef struct gemm_call {
    const gemm_ops *ops;
    const tier_sizes *sizes;
    linear_product p;
    size_t element; /* bytes of one of W */
    size_t unit;    /* bytes of one of x, and of W when converted */
    outcome end;
} gemm_call;

/* Words that so many elements of a row take, of x or of W when converted. */
static inline size_t gemm_words(const gemm_call *c, uint64_t elements) {
    return ((size_t)elements * c->unit + GEMM_WORD - 1) / GEMM_WORD;
}

static inline size_t gemm_result_bytes(const gemm_call *c) {
    return c->p.halves ? sizeof(uint16_t) : sizeof(float);
}

/* Row r of x. */
static inline const uint8_t *gemm_x(const gemm_call *c, uint64_t r) {
    return (const uint8_t *)c->p.x + r * c->p.ldx * c->unit;
}

/* Where the result of row r of x with row `row` of W belongs. */
static inline uint8_t *gemm_y(const gemm_call *c, uint64_t r, uint64_t row) {
    return (uint8_t *)c->p.y + (r * c->p.ldy + row) * gemm_result_bytes(c);
}

static inline fetch gemm_fetch(const gemm_call *c, uint8_t *pages) {
    fetch f = fetch_from(c->p.store, pages);
    f.element = c->element;
    f.convert = c->ops->convert[c->p.dtype];
    f.converted = c->unit;
    return f;
}

/* How many threads are worth taking `groups` groups of W's rows with so many rows of x: an element
 * of W costs a unit to open and to convert, and one for each 16 rows of x. */
static inline unsigned gemm_threads(const gemm_call *c, uint64_t rows, uint64_t groups) {
    const uint64_t work =
        c->p.out_features * c->p.in_features / 16 * (16 + rows) / c->sizes->gemm_grain;
    return threads_for(work, groups);
}

/* 1 when the rows are summed along k in one piece, so that sums can be rounded at once. */
int gemm_few_whole(const gemm_call *call);

/* 1 when panels are multiplied by rows of W where they were opened: then they lose nothing but the
 * rows that a last panel lacks. */
int gemm_panels_as_is(const gemm_call *call);

ccmem_status gemm_few(gemm_call *call);
ccmem_status gemm_panels(gemm_call *call);

#endif
