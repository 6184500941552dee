/* SPDX-License-Identifier: Apache-2.0
 * Rows of the caller's memory as the plaintext of records and groups, and back. The plaintext lies
 * in the pool for plaintext (memory/plain.h), which wipes what is given back. */
#ifndef CCMEM_CACHE_STAGE_H
#define CCMEM_CACHE_STAGE_H

#include "cache/layout.h"

/* Element 0 of a row. */
static inline const uint8_t *rows_at(const ccmem_cache_rows *rows, size_t element,
                                     uint64_t sequence, uint64_t head, uint64_t token) {
    return (const uint8_t *)rows->data +
           ((int64_t)sequence * rows->sequence + (int64_t)head * rows->head +
            (int64_t)token * rows->token) *
               (int64_t)element;
}

/* Bytes that stage_*() need at `floats`: for rows as floats, and for a row of a block. */
size_t stage_floats(const cache_layout *l);

/* Makes the record of one token. `in` is of K, then of V. */
void stage_record(const cache_layout *l, uint8_t *record, const ccmem_cache_rows in[2],
                  uint64_t sequence, uint64_t token, float *floats);

/* Makes row `t` of all blocks of a group, from the caller's rows or from an opened record. */
void stage_token(const cache_layout *l, uint8_t *group, size_t t, const ccmem_cache_rows in[2],
                 uint64_t sequence, uint64_t token, float *floats);
void stage_token_of_record(const cache_layout *l, uint8_t *group, size_t t, const uint8_t *record);

/* The reverse: a record of row `t` of the blocks of a group. */
void stage_record_of_group(const cache_layout *l, uint8_t *record, const uint8_t *group, size_t t);

/* Gathers row `t` of a block of K or V. `row` has room for a padded row. */
void stage_row_of_block(const cache_layout *l, int which, uint8_t *row, const uint8_t *block,
                        size_t t);

/* Copies one row, with its scale where the layer has them, to the caller's memory: see
 * ccmem_cache_read(). */
void stage_out(const cache_layout *l, int which, void *to, const uint8_t *row, const uint8_t *scale,
               float *floats);

#endif
