/* SPDX-License-Identifier: Apache-2.0
 * An attention on its way, and the two ways to compute it. */
#ifndef CCMEM_CACHE_ATTEND_H
#define CCMEM_CACHE_ATTEND_H

#include "cache/cache.h"
#include "platform/round.h"
#include "store/store.h"
#include "tiers/tiers.h"

typedef struct attend {
    const ccmem_attention *w; /* what is asked for */
    cache_pool *pool;
    const cache_layout *l;
    const cache_sequence *sequence; /* the first one */
    const attention_ops *ops;
    const attention_ops *products; /* pack, scores, block_scores, block_sums for these types */
    const gemm_ops *gemm;
    const tier_sizes *sizes;
    size_t share; /* query heads of one head of K and V */
    /* The records of all sequences, opened before anything else, each `record` bytes. */
    uint8_t *tails;
    size_t tail; /* bytes of a sequence's */
    outcome end;
} attend;

/* Few rows of q: one after the other with each block; every head of each sequence may be cut into
 * parts, whose sums are put together at the end. */
void attend_rows(attend *a);

/* Many: a block of rows of q with a chunk of K, then of V, by the kernels of products. */
void attend_blocks(attend *a);

/* Tokens [*from, *to) are what row r of sequence i sees at most; *from <= *to. */
void attend_range(const attend *a, uint64_t i, uint64_t r, uint64_t *from, uint64_t *to);

/* A piece of a sequence: a group, or the records as if they were one more. */
typedef struct attend_piece {
    uint64_t first; /* token */
    size_t tokens;
    const cache_entry *group; /* NULL: the records */
    const uint8_t *tail;      /* these */
} attend_piece;

attend_piece attend_piece_of(const attend *a, uint64_t i, uint64_t number);

/* How many pieces there are, and the one that a token is in. */
uint64_t attend_pieces(const attend *a, uint64_t i);
uint64_t attend_piece_at(const attend *a, uint64_t i, uint64_t token);

/* What is fetched from memory while a block is opened and used: the one that is opened next, and
 * the one after it. NULL: none. */
typedef struct attend_ahead {
    const uint8_t *near, *far;
} attend_ahead;

/* Where the block of a head of piece `number` lies, if this is a group and before `end`. */
const uint8_t *attend_block_at(const attend *a, uint64_t i, uint64_t number, uint64_t end,
                               int which, size_t head);

/* Opens what a head has of a piece: rows, their distance in bytes (0: they lie as in a block, see
 * kernels/attention.h), and scales (NULL: none). `block`
 * has room for a block, `scale` for a float a token. 0: it was changed, and the call has failed. */
int attend_open(attend *a, const attend_piece *piece, int which, size_t head, attend_ahead next,
                uint8_t *block, float *scale, const uint8_t **rows, size_t *stride,
                const float **scales);

/* Counts what was opened of so many heads of pieces [begin, end). The records are counted when they
 * are opened, once for all heads. */
void attend_opened(const attend *a, uint64_t i, uint64_t begin, uint64_t end, size_t heads);

/* Row r of q of a query head of sequence i as floats. */
void attend_query(const attend *a, uint64_t i, uint64_t query_head, uint64_t r, float *to);

/* Does to a row of scores of tokens [first, first + n) what comes before the softmax: softcap, the
 * mask, -infinity for what the row does not see. */
void attend_mask(const attend *a, uint64_t i, uint64_t query_head, uint64_t r, float *scores,
                 uint64_t first, size_t n);

/* Puts value_size sums of a row, times a factor, to the caller's memory; `floats` has room. */
void attend_put(const attend *a, uint64_t i, uint64_t query_head, uint64_t r, const float *values,
                size_t n);

/* One step of a softmax by parts (Milakov and Gimelshein, arXiv 1805.02867): takes n scores, makes
 * them exponentials, brings *most and *total up to date, and returns by what sums so far are to be
 * multiplied. */
float attend_softmax(const attend *a, float *scores, size_t n, float *most, float *total);

/* What sums are to be multiplied by at the end: 1 / total, 0 for a row that has seen nothing. The
 * sink of the query head takes its share, once. */
float attend_share(const attend *a, uint64_t query_head, float most, float total);

/* The rows' own length of floats, filled up for the kernels. */
static inline size_t attend_floats(size_t n) { return round_up(n, ATTENTION_FLOATS); }

#endif
