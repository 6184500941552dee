/* SPDX-License-Identifier: Apache-2.0
 * How the rows of a layer lie in blocks and records: sizes and places, for plaintext and ciphertext
 * alike. */
#ifndef CCMEM_CACHE_LAYOUT_H
#define CCMEM_CACHE_LAYOUT_H

#include "ccmem.h"

enum { CACHE_K = 0, CACHE_V = 1 };

/* Index 0 is for K, 1 for V. A row is padded with zeros to whole ATTENTION_PAD bytes. */
typedef struct cache_layout {
    ccmem_dtype dtype;
    size_t element; /* bytes */
    size_t heads;
    size_t size[2];   /* elements of a row */
    size_t padded[2]; /* the same, with the padding */
    size_t row[2];    /* its bytes */
    size_t tokens;    /* of a block, a multiple of ATTENTION_TOKENS */
    size_t block[2];  /* bytes: the rows (kernels/attention.h), then for CCMEM_I8 a float32 scale a
                         row; whole 64 bytes */
    size_t group;     /* bytes of the blocks of all heads: K's, then V's */
    size_t record;    /* bytes: rows of K, rows of V, scales of K, of V; whole 64 bytes */
} cache_layout;

/* Returns 0 for a layer that cannot be: see ccmem_cache_add_layer(). */
int cache_layout_of(cache_layout *layout, const ccmem_cache_layer *layer);

/* Where the block of a head begins in a group. */
static inline size_t layout_block(const cache_layout *l, int which, size_t head) {
    return which ? l->heads * l->block[0] + head * l->block[1] : head * l->block[0];
}

/* Where the scales begin in a block. */
static inline size_t layout_block_scales(const cache_layout *l, int which) {
    return l->tokens * l->row[which];
}

/* Where the row of a head begins in a record. */
static inline size_t layout_record_row(const cache_layout *l, int which, size_t head) {
    return which ? l->heads * l->row[0] + head * l->row[1] : head * l->row[0];
}

/* Where its scale is. */
static inline size_t layout_record_scale(const cache_layout *l, int which, size_t head) {
    return l->heads * (l->row[0] + l->row[1]) + sizeof(float) * ((which ? l->heads : 0) + head);
}

#endif
