/* SPDX-License-Identifier: Apache-2.0
 * Attention where q, K and V are bfloat16, with AVX-512 BF16: AMD from Zen 4, Intel from Cooper
 * Lake and Sapphire Rapids. Pairs are multiplied and added by one instruction, where others take
 * two and convert before; it has the throughput of a multiply-add of floats on both. Its latency, 6
 * cycles at one a cycle, wants more chains of sums than the eight of the template
 * (attention_template.h): 16 for four rows of q, whose 32 registers have room for them.
 *
 * p becomes bfloat16 as q is; the sum of p, by which sums are divided, is of p as it was. A weight
 * is off by 2^-9 of itself at most, as each element of K, V and the result. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <string.h>

#include "kernels/attention.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_AVX512 ",avx512bf16")))
#include "simd/v512.h"

enum {
    PAIRS = F_LANES,   /* of a vector */
    ROW = 2 * F_LANES, /* elements of a vector of a row */
    MOST = 4,          /* rows at a time */
    CHAINS = 16,
    CHUNK = 64, /* tokens whose p are rounded at a time */
    LINE = 64,  /* of a cache */
    FETCH = 2,  /* as in the template */
    SINGLE = 2  /* bytes of an element */
};

_Static_assert(ATTENTION_TOKENS % PAIRS == 0 && CHUNK % ATTENTION_TOKENS == 0, "whole vectors");
_Static_assert(ATTENTION_FLOATS % ROW == 0, "a packed row is whole vectors");

INLINE __m256i rounded(fvec v) { return (__m256i)_mm512_cvtneps_pbh(v); }

/* ---- q --------------------------------------------------------------------------------------- */

/* A packed row: its elements, and behind them `scale`, with which they would not be what they were.
 */
static TARGET CLEAR_REGISTERS void pack(float *packed, const float *q, size_t d, float scale) {
    const size_t place = attention_factor_place(d);
    uint16_t *to = (uint16_t *)(void *)packed;
    for (size_t i = 0; i < 2 * place; i += F_LANES) {
        const size_t n = i >= d ? 0 : d - i < F_LANES ? d - i : F_LANES;
        _mm256_storeu_si256((__m256i *)(void *)(to + i), rounded(fload_some(q + i, n)));
    }
    packed[place] = scale;
}

INLINE fvec pair_of(const void *p) {
    float both;
    memcpy(&both, p, sizeof both);
    return fall(both);
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* Of rows of K: those of a token that was not sealed in a block yet. */
INLINE void score_rows(int rows, float *scores, size_t lds, const uint8_t *k, size_t stride,
                       size_t tokens, size_t n, const float *q, size_t ldq) {
    const size_t place = attention_factor_place(n);
    for (size_t t = 0; t < tokens; t++, k += stride) {
        fvec sum[MOST];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            sum[r] = fzero();
        for (size_t at = 0; at < n; at += ROW) {
            const VEC u = n - at < ROW ? vload_part(k + at * SINGLE, 2) : vload(k + at * SINGLE);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sum[r] =
                    ffma_bfloats(u, vload((const uint8_t *)(q + (size_t)r * ldq) + at * SINGLE),
                                 sum[r]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const float *own = q + (size_t)r * ldq;
            scores[(size_t)r * lds + t] = _mm512_reduce_add_ps(sum[r]) * own[place];
        }
    }
}

/* All lines at once: between the products, each cost as much as one of them. */
INLINE void fetch(const uint8_t *next, const uint8_t *block, size_t bytes) {
    for (size_t at = 0; at < bytes && next != block; at += LINE)
        __builtin_prefetch(next + at, 0, FETCH);
}

/* Of `vectors` vectors of tokens of a block, whose pairs of elements lie `column` bytes apart;
 * `splits` of them are summed up apart, for the sake of the chains. */
INLINE void score_columns(int rows, int vectors, int splits, float *scores, size_t lds,
                          const uint8_t *k, size_t column, size_t n, const float *q, size_t ldq) {
    const size_t place = attention_factor_place(n);
    const int each = rows * vectors;
    fvec sum[CHAINS];
#pragma GCC unroll 16
    for (int i = 0; i < each * splits; i++)
        sum[i] = fzero();
    for (size_t at = 0; at < n / 2; at += (size_t)splits)
#pragma GCC unroll 8
        for (int s = 0; s < splits; s++, k += column) {
            VEC u[CHAINS];
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++) {
                u[j] = vload(k + (size_t)j * sizeof(VEC));
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const fvec x = pair_of(q + (size_t)r * ldq + at + (size_t)s);
#pragma GCC unroll 8
                for (int j = 0; j < vectors; j++) {
                    fvec *to = &sum[s * each + r * vectors + j];
                    *to = ffma_bfloats(u[j], x, *to);
                }
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            fvec total = sum[r * vectors + j];
#pragma GCC unroll 8
            for (int s = 1; s < splits; s++)
                total = fadd(total, sum[s * each + r * vectors + j]);
            fstore(scores + (size_t)r * lds + (size_t)j * F_LANES,
                   fmul(total, fspread(q + (size_t)r * ldq + place)));
        }
}

/* A row has a multiple of 8 pairs: ATTENTION_PAD bytes. */
_Static_assert(ATTENTION_PAD % (8 * 2 * SINGLE) == 0, "splits of a row");

INLINE void score_block(int rows, float *scores, size_t lds, const uint8_t *k, size_t tokens,
                        size_t n, const float *q, size_t ldq) {
    const size_t column = tokens * 2 * SINGLE;
    size_t t = 0;
    for (; tokens - t >= 4 * F_LANES; t += 4 * F_LANES)
        score_columns(rows, 4, rows == 4 ? 1 : 2, scores + t, lds, k + t * 2 * SINGLE, column, n, q,
                      ldq);
    for (; t < tokens; t += F_LANES)
        score_columns(rows, 1, rows == 1 ? 8 : 4, scores + t, lds, k + t * 2 * SINGLE, column, n, q,
                      ldq);
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* p of up to CHUNK tokens, rounded. */
typedef struct weights {
    uint16_t row[MOST][CHUNK];
} weights;

/* Adds to `vectors` vectors of sums: V's pairs of rows are `step` bytes apart. */
INLINE void sum_vectors(int rows, int vectors, float *sums, size_t ldo, const weights *w,
                        const uint8_t *v, size_t step, size_t tokens) {
    fvec sum[CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sum[r * vectors + j] = fload_aligned(sums + (size_t)r * ldo + (size_t)j * F_LANES);
    for (size_t t = 0; t < tokens; t += 2, v += step) {
        VEC u[CHAINS];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            u[j] = vload(v + (size_t)j * sizeof(VEC));
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const fvec x = pair_of(&w->row[r][t]);
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sum[r * vectors + j] = ffma_bfloats(u[j], x, sum[r * vectors + j]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            fstore_aligned(sums + (size_t)r * ldo + (size_t)j * F_LANES, sum[r * vectors + j]);
}

INLINE void sum_block(int rows, float *sums, size_t ldo, const float *p, size_t ldp,
                      const uint8_t *v, size_t tokens, size_t n, weights *w) {
    const size_t step = n * 2 * SINGLE;
    for (size_t t = 0; t < tokens; t += CHUNK, v += CHUNK / 2 * step) {
        const size_t left = tokens - t < CHUNK ? tokens - t : CHUNK;
        for (int r = 0; r < rows; r++)
            for (size_t i = 0; i < left; i += F_LANES)
                _mm256_storeu_si256((__m256i *)(void *)&w->row[r][i],
                                    rounded(fload(p + (size_t)r * ldp + t + i)));
        size_t at = 0;
#define VECTORS(count)                                                                             \
    for (; n - at >= (size_t)(count) * F_LANES; at += (size_t)(count) * F_LANES)                   \
    sum_vectors(rows, count, sums + at, ldo, w, v + at * 2 * SINGLE, step, left)
        if (rows < MOST)
            VECTORS(8);
        VECTORS(4);
        VECTORS(2);
        VECTORS(1);
#undef VECTORS
    }
}

/* ---- for all rows ---------------------------------------------------------------------------- */

/* Calls DO for four rows at a time, then for two, then for one; NEXT goes on by so many. */
#define ALL_ROWS(DO, NEXT)                                                                         \
    do {                                                                                           \
        for (; rows >= 4; rows -= 4) {                                                             \
            DO(4);                                                                                 \
            NEXT(4);                                                                               \
        }                                                                                          \
        if (rows >= 2) {                                                                           \
            DO(2);                                                                                 \
            NEXT(2);                                                                               \
            rows -= 2;                                                                             \
        }                                                                                          \
        if (rows)                                                                                  \
            DO(1);                                                                                 \
    } while (0)

#define NEXT_SCORES(count) (scores += (count) * lds, q += (count) * ldq)
#define NEXT_SUMS(count) (sums += (count) * ldo, p += (count) * ldp)

static TARGET CLEAR_REGISTERS void scores_bf16(float *scores, size_t lds, const uint8_t *k,
                                               size_t stride, const float *scales, size_t tokens,
                                               size_t n, const float *q, size_t ldq, size_t rows) {
    (void)scales;
#define SCORE(count) score_rows(count, scores, lds, k, stride, tokens, n, q, ldq)
    ALL_ROWS(SCORE, NEXT_SCORES);
#undef SCORE
}

static TARGET CLEAR_REGISTERS void block_scores_bf16(float *scores, size_t lds, const uint8_t *k,
                                                     const uint8_t *next, const float *scales,
                                                     size_t tokens, size_t n, const float *q,
                                                     size_t ldq, size_t rows) {
    (void)scales;
    fetch(next, k, tokens * n * SINGLE);
#define SCORE(count) score_block(count, scores, lds, k, tokens, n, q, ldq)
    ALL_ROWS(SCORE, NEXT_SCORES);
#undef SCORE
}

static TARGET CLEAR_REGISTERS void block_sums_bf16(float *sums, size_t ldo, const float *p,
                                                   size_t ldp, const uint8_t *v,
                                                   const uint8_t *next, const float *scales,
                                                   size_t tokens, size_t n, size_t rows) {
    weights w;
    (void)scales;
    fetch(next, v, tokens * n * SINGLE);
#define SUM(count) sum_block(count, sums, ldo, p, ldp, v, tokens, n, &w)
    ALL_ROWS(SUM, NEXT_SUMS);
#undef SUM
    ccmem_wipe(&w, sizeof w);
}

const attention_ops attention_bf16 = {.pack = {[CCMEM_BF16] = pack},
                                      .scores = {[CCMEM_BF16] = scores_bf16},
                                      .block_scores = {[CCMEM_BF16] = block_scores_bf16},
                                      .block_sums = {[CCMEM_BF16] = block_sums_bf16}};
#endif
