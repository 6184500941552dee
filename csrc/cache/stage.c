/* SPDX-License-Identifier: Apache-2.0
 * Rows of the caller's memory as the plaintext of records and groups, and back. */
#include "cache/stage.h"

#include <string.h>

#include "kernels/attention.h"
#include "memory/secret.h"
#include "platform/dtype.h"
#include "tiers/tiers.h"

enum { SLACK = 32 }; /* floats that a conversion may read or write behind a row */

size_t stage_floats(const cache_layout *l) {
    const size_t most = l->padded[0] > l->padded[1] ? l->padded[0] : l->padded[1];
    return (3 * most + 3 * SLACK) * sizeof(float);
}

/* Room for one row behind what put_row() uses of `floats`. */
static uint8_t *spare_row(const cache_layout *l, float *floats) {
    const size_t most = l->padded[0] > l->padded[1] ? l->padded[0] : l->padded[1];
    return (uint8_t *)(floats + 2 * most + 3 * SLACK);
}

/* n bytes by words in general registers: rows are too short for `rep movsb`, which takes some
 * hundred cycles to begin with on processors before Zen 3 and Ice Lake, and vectors would stay in
 * their registers. */
static void copy_row(uint8_t *to, const uint8_t *from, size_t n) {
    uint64_t word;
    for (; n >= sizeof word; n -= sizeof word, to += sizeof word, from += sizeof word) {
        memcpy(&word, from, sizeof word);
        __asm__ volatile("" : "+r"(word)); /* keeps the compiler from making vectors of it */
        memcpy(to, &word, sizeof word);
    }
    if (n)
        copy_secret(to, from, n);
}

/* One row, padded, and its scale. `floats` has room for two rows: the caller's, which is not read
 * behind its end, and its numbers. */
static void put_row(const cache_layout *l, int which, uint8_t *row, uint8_t *scale,
                    const uint8_t *from, ccmem_dtype dtype, float *floats) {
    const size_t n = l->size[which];
    if (l->dtype != CCMEM_I8) {
        copy_row(row, from, n * l->element);
        memset(row + n * l->element, 0, l->row[which] - n * l->element);
        return;
    }
    const tier_kernels kernels = tier_active_kernels();
    float *numbers = floats + l->padded[which] + SLACK, one;
    copy_row((uint8_t *)floats, from, n * dtype_size(dtype));
    kernels.gemm->convert[dtype](numbers, (const uint8_t *)floats, n);
    kernels.attention->quantise((int8_t *)row, &one, numbers, n);
    memset(row + n, 0, l->row[which] - n);
    copy_secret(scale, &one, sizeof one);
    ccmem_wipe(&one, sizeof one);
}

/* ---- where rows are -------------------------------------------------------------------------- */

/* How row t lies in a block: `n` words of `word` bytes, `step` bytes from one to the next. */
typedef struct words {
    size_t first, word, step, n;
} words;

static words words_of(const cache_layout *l, int which, size_t t) {
    const size_t pair = attention_pair(l->dtype);
    if (which == CACHE_K) {
        const size_t word = pair * l->element;
        return (words){t * word, word, l->tokens * word, l->row[CACHE_K] / word};
    }
    if (pair == 1)
        return (words){t * l->row[CACHE_V], l->row[CACHE_V], 0, 1};
    return (words){t / pair * pair * l->row[CACHE_V] + t % pair * l->element, l->element,
                   pair * l->element, l->padded[CACHE_V]};
}

/* By general registers, as copy_row() does it. */
#define MOVE_WORDS(type, to, to_step, from, from_step)                                             \
    for (size_t i = 0; i < w.n; i++) {                                                             \
        type word;                                                                                 \
        memcpy(&word, (from) + i * (from_step), sizeof word);                                      \
        memcpy((to) + i * (to_step), &word, sizeof word);                                          \
    }

/* Puts a padded row at row t of the block. */
static void scatter_row(const cache_layout *l, int which, uint8_t *block, size_t t,
                        const uint8_t *row) {
    const words w = words_of(l, which, t);
    block += w.first;
    switch (w.word) {
    case 1: MOVE_WORDS(uint8_t, block, w.step, row, 1) return;
    case 2: MOVE_WORDS(uint16_t, block, w.step, row, 2) return;
    case 4: MOVE_WORDS(uint32_t, block, w.step, row, 4) return;
    default: copy_row(block, row, w.word);
    }
}

void stage_row_of_block(const cache_layout *l, int which, uint8_t *row, const uint8_t *block,
                        size_t t) {
    const words w = words_of(l, which, t);
    block += w.first;
    switch (w.word) {
    case 1: MOVE_WORDS(uint8_t, row, 1, block, w.step) return;
    case 2: MOVE_WORDS(uint16_t, row, 2, block, w.step) return;
    case 4: MOVE_WORDS(uint32_t, row, 4, block, w.step) return;
    default: copy_row(row, block, w.word);
    }
}
#undef MOVE_WORDS

static uint8_t *block_scale(const cache_layout *l, uint8_t *group, int which, size_t head,
                            size_t t) {
    return group + layout_block(l, which, head) + layout_block_scales(l, which) + t * sizeof(float);
}

void stage_record(const cache_layout *l, uint8_t *record, const ccmem_cache_rows in[2],
                  uint64_t sequence, uint64_t token, float *floats) {
    for (int which = 0; which < 2; which++) {
        const size_t element = dtype_size(in[which].dtype);
        for (size_t h = 0; h < l->heads; h++)
            put_row(l, which, record + layout_record_row(l, which, h),
                    record + layout_record_scale(l, which, h),
                    rows_at(&in[which], element, sequence, h, token), in[which].dtype, floats);
    }
}

void stage_token(const cache_layout *l, uint8_t *group, size_t t, const ccmem_cache_rows in[2],
                 uint64_t sequence, uint64_t token, float *floats) {
    uint8_t *row = spare_row(l, floats);
    for (int which = 0; which < 2; which++) {
        const size_t element = dtype_size(in[which].dtype);
        for (size_t h = 0; h < l->heads; h++) {
            put_row(l, which, row, block_scale(l, group, which, h, t),
                    rows_at(&in[which], element, sequence, h, token), in[which].dtype, floats);
            scatter_row(l, which, group + layout_block(l, which, h), t, row);
        }
    }
}

void stage_token_of_record(const cache_layout *l, uint8_t *group, size_t t, const uint8_t *record) {
    for (int which = 0; which < 2; which++)
        for (size_t h = 0; h < l->heads; h++) {
            scatter_row(l, which, group + layout_block(l, which, h), t,
                        record + layout_record_row(l, which, h));
            if (l->dtype == CCMEM_I8)
                copy_secret(block_scale(l, group, which, h, t),
                            record + layout_record_scale(l, which, h), sizeof(float));
        }
}

void stage_record_of_group(const cache_layout *l, uint8_t *record, const uint8_t *group, size_t t) {
    uint8_t *from = (uint8_t *)group; /* the places are the same; nothing is written there */
    for (int which = 0; which < 2; which++)
        for (size_t h = 0; h < l->heads; h++) {
            stage_row_of_block(l, which, record + layout_record_row(l, which, h),
                               from + layout_block(l, which, h), t);
            if (l->dtype == CCMEM_I8)
                copy_secret(record + layout_record_scale(l, which, h),
                            block_scale(l, from, which, h, t), sizeof(float));
        }
}

void stage_out(const cache_layout *l, int which, void *to, const uint8_t *row, const uint8_t *scale,
               float *floats) {
    const size_t n = l->size[which];
    if (l->dtype != CCMEM_I8) {
        copy_row(to, row, n * l->element);
        return;
    }
    const tier_kernels kernels = tier_active_kernels();
    float one;
    copy_secret(&one, scale, sizeof one);
    kernels.gemm->convert[CCMEM_I8](floats, row, n);
    kernels.attention->scale(floats, n, one);
    copy_row(to, (const uint8_t *)floats, n * sizeof(float));
    ccmem_wipe(&one, sizeof one);
}
