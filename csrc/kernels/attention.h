/* SPDX-License-Identifier: Apache-2.0
 * The arithmetic of attention over opened blocks of K and V: that of each tier behind one table.
 * See ccmem_cache_attend() in ccmem.h. A row of K or V is `n` elements: the row's size filled up
 * with zeros to a multiple of ATTENTION_PAD bytes. It lies either by itself, with the next row
 * `stride` bytes behind it and each aligned to ATTENTION_PAD, or in a block, where what is computed
 * together lies together:
 *
 *   K  for each element, or pair of elements, those of all tokens, so that the scores of a vector
 *      of tokens are computed at once: lanes need not be added up
 *   V  rows; of bytes and of bfloat16, for each pair of tokens the pairs of their elements
 *
 * Pairs are what an instruction takes: two bytes are multiplied and added by one, two of bfloat16
 * by AVX-512 BF16; elsewhere a vector with pairs of bfloat16 becomes two of floats by a shift and a
 * mask. Nothing here branches on, or looks
 * up by, what rows or scores hold. What is not a number stays one, and makes a whole row of sums
 * so; it raises no fault. */
#ifndef CCMEM_ATTENTION_H
#define CCMEM_ATTENTION_H

#include "platform/dtype.h"

enum {
    ATTENTION_PAD = 32,    /* bytes */
    ATTENTION_TOKENS = 16, /* of a block: a multiple */
    ATTENTION_ALIGN = 16,  /* scores of a row are written up to a multiple of so many tokens */
    /* Floats after which a row of q, of sums, ... is filled up, in every tier: the widest vector of
     * bytes has so many. */
    ATTENTION_FLOATS = 64
};

/* How many elements of K's rows, or rows of V, are paired in a block. */
static inline size_t attention_pair(ccmem_dtype dtype) {
    return dtype == CCMEM_BF16 || dtype == CCMEM_I8 ? 2 : 1;
}

/* Where a row of q that was packed as 16-bit numbers has the float that they are multiplied by:
 * behind as many of them as fill the row up. */
static inline size_t attention_factor_place(size_t n) {
    return (n + ATTENTION_FLOATS - 1) / ATTENTION_FLOATS * (ATTENTION_FLOATS / 2);
}

typedef struct attention_ops {
    /* q's row of d floats as the scores of this type want it: times `scale`, zeros up to a multiple
     * of ATTENTION_FLOATS. For CCMEM_I8 a tier may round q to 2^-15 of its row's largest number,
     * and so it may p below. */
    void (*pack[DTYPES])(float *packed, const float *q, size_t d, float scale);

    /* scores[r * lds + t] = the sum of K's row t times packed row r of q, ldq floats apart, times
     * scales[t] for CCMEM_I8 (else NULL), for t < tokens, r < rows; rows >= 1, tokens >= 1. Scores
     * behind the last token, up to a multiple of ATTENTION_ALIGN, become anything finite or not;
     * K and scales behind it are not read. */
    void (*scores[DTYPES])(float *scores, size_t lds, const uint8_t *k, size_t stride,
                           const float *scales, size_t tokens, size_t n, const float *q, size_t ldq,
                           size_t rows);

    /* The same for a whole block: `tokens` is a multiple of ATTENTION_TOKENS. Meanwhile as many
     * bytes as it has are fetched from `next` into a cache. */
    void (*block_scores[DTYPES])(float *scores, size_t lds, const uint8_t *k, const uint8_t *next,
                                 const float *scales, size_t tokens, size_t n, const float *q,
                                 size_t ldq, size_t rows);

    /* Adds to the sums of row r, at sums + r * ldo, p[r * ldp + t] times V's row t (times
     * scales[t]). A row of sums has a multiple of ATTENTION_FLOATS, which begin as zeros, is
     * 64-byte aligned, and so is the next. */
    void (*sums[DTYPES])(float *sums, size_t ldo, const float *p, size_t ldp, const uint8_t *v,
                         size_t stride, const float *scales, size_t tokens, size_t n, size_t rows);

    /* The same for a whole block. */
    void (*block_sums[DTYPES])(float *sums, size_t ldo, const float *p, size_t ldp,
                               const uint8_t *v, const uint8_t *next, const float *scales,
                               size_t tokens, size_t n, size_t rows);

    /* Makes floats of `count` columns, a multiple of 8, of a matrix that lies as K's elements do in
     * a block: `outer` rows of `inner` columns, pairs of rows by pairs. `from` is the first wanted
     * column of row 0; row r goes to to + r * ld, each column times its scale (NULL: times 1). Of
     * K, rows are elements and columns are tokens; of V's bytes it is the other way round. */
    void (*columns[DTYPES])(float *to, size_t ld, const uint8_t *from, const float *scales,
                            size_t inner, size_t count, size_t outer);

    /* Of one row of scores, n >= 1 of them: the highest of those that are numbers; -infinity when
     * there is none. */
    float (*highest)(const float *scores, size_t n);

    /* Makes each score exp(score - most), and returns their sum. `most` is at least the highest. A
     * score of -infinity becomes 0, whatever `most` is, and so does one below most - 87. Relative
     * error below 2^-20. */
    float (*exponentials)(float *scores, size_t n, float most);

    /* cap * tanh(score / cap) of each; cap > 0. Relative error below 2^-20. */
    void (*soften)(float *scores, size_t n, float cap);

    /* Multiplies n floats by f. */
    void (*scale)(float *values, size_t n, float f);

    /* d floats as float32, float16 or bfloat16 (rounded to the nearest, of two the even one). */
    void (*store[DTYPES])(void *to, const float *from, size_t d);

    /* d floats as bytes and their scale, max |x| / 127; zeros have scale 0. Not a number, or
     * infinite: what the row reads as is not said, but not out of bounds. */
    void (*quantise)(int8_t *to, float *scale, const float *from, size_t d);
} attention_ops;

extern const attention_ops attention_portable, attention_avx2, attention_avx512;

/* Has pack, scores, block_scores and block_sums for CCMEM_BF16 and nothing else: q's rows and p are
 * rounded to bfloat16, what its own rows are packed by is for its own scores, and subnormal numbers
 * of bfloat16 count as zeros. */
extern const attention_ops attention_bf16;

#endif
