/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention kernels of every SIMD tier. A tier file defines TARGET, includes the vector words
 * of its width (simd/target.h) and simd/f8.h, defines ATTENTION_OPS, the name of the table, then
 * includes this file once.
 *
 * How the time goes. Scores and sums are bound by the multiply-adds where a head of K serves
 * several rows of q. Eight chains of sums hide their latency (4 cycles at up to 2 a cycle); what
 * they are for depends on the rows, so that each converted vector of K or V, and each of q or p,
 * serves as many of them as it can: 1 row by 8 tokens or vectors, 2 by 4, 4 by 2. More do not fit
 * into 16 registers together with what is multiplied.
 *
 * In a block of K a vector has an element of several tokens, so that scores need no sum of lanes:
 * with four rows of 128 bfloat16 they take 1.03 of what the multiply-adds alone would, 1.4 where
 * each token's row is a vector of its own (Zen 3). Where there are fewer tokens than chains, each
 * chain has some of the elements.
 *
 * Rows are read in groups of as many elements as a vector of bytes has, which become one or two
 * vectors of floats. A row may end with half a group where vectors have 64 bytes.
 */
#include "kernels/exponential.h"
#include "simd/scalar.h"

enum {
    CHAINS = 8,
    PAD = ATTENTION_PAD,
    GROUP = V_BLOCKS * 16, /* bytes */
    FETCH = 2,             /* into an L2: an L1 is full of scores */
    LINE = 64,             /* of a cache */
    SCALED = 64            /* tokens whose p is multiplied by scales at a time */
};

_Static_assert(GROUP == PAD || GROUP == 2 * PAD, "half a group, or none");
_Static_assert(GROUP <= (int)ATTENTION_FLOATS, "a row of q ends with whole vectors");
_Static_assert(CHAINS <= (int)ATTENTION_ALIGN, "scores behind the last token");

/* Vectors of floats of a group. */
INLINE int vectors_of(size_t element) { return (int)(sizeof(float) / element); }

/* Vector number i of the group at p, which is half a one when `half`. */
INLINE fvec convert(ccmem_dtype dtype, int half, const uint8_t *p, int i) {
    if (dtype == CCMEM_F32)
        return half ? ffloats(vload_part(p, PAD / 16)) : fload(p);
    if (half && i)
        return fzero();
    p += i * F_LANES * 2;
    return dtype == CCMEM_F16 ? fload_half(p) : fload_bfloat(p);
}

/* ---- rows of any length ---------------------------------------------------------------------- */

/* Calls BODY(at, n) for all vectors of `count` floats; n < F_LANES for the last one, if at all. */
#define EACH_VECTOR(count, BODY)                                                                   \
    do {                                                                                           \
        size_t at = 0;                                                                             \
        for (; (count) - at >= F_LANES; at += F_LANES)                                             \
            BODY(at, F_LANES);                                                                     \
        if (at < (count))                                                                          \
            BODY(at, (count) - at);                                                                \
    } while (0)

INLINE fvec load_up_to(const float *p, size_t n) {
    return n == F_LANES ? fload(p) : fload_some(p, n);
}

INLINE void store_up_to(float *p, size_t n, fvec v) {
    if (n == F_LANES)
        fstore(p, v);
    else
        fstore_some(p, n, v);
}

/* ---- 16-bit numbers -------------------------------------------------------------------------- */

/* Bytes are multiplied by 16-bit numbers, twice as many at a time as floats: q and p become such
 * ones, with a float for each row that says what they count in. */

/* Makes shorts of n products of a[i] with b[i], or with factor when b is NULL, up to a whole
 * vector, and returns what they count in: not a number when one of the products is none, or is
 * infinite. */
INLINE float shorts(int16_t *to, const float *a, const float *b, float factor, size_t n) {
    fvec most = fzero(), bad = fzero();
#define PRODUCT(at, count)                                                                         \
    fmul(load_up_to(a + (at), count), b ? load_up_to(b + (at), count) : fall(factor))
#define LOOK(at, count)                                                                            \
    do {                                                                                           \
        const fvec v = PRODUCT(at, count);                                                         \
        most = fmost(fsize(v), most);                                                              \
        bad = ffma(v, fzero(), bad);                                                               \
    } while (0)
    EACH_VECTOR(n, LOOK);
    const short_scale s = short_scale_of(f8_highest(ffold8_most(most)));
#define STORE(at, count) fstore_short(to + (at), fmul(PRODUCT(at, count), fall(s.enlarge)))
    EACH_VECTOR(n, STORE);
#undef STORE
#undef LOOK
#undef PRODUCT
    return s.size + f8_total(ffold8(bad));
}

/* ---- q --------------------------------------------------------------------------------------- */

static TARGET CLEAR_REGISTERS void pack(float *packed, const float *q, size_t d, float scale) {
    const size_t end = (d + ATTENTION_FLOATS - 1) / ATTENTION_FLOATS * ATTENTION_FLOATS;
#define PACK(i, count) fstore(packed + (i), fmul(load_up_to(q + (i), count), fall(scale)))
    EACH_VECTOR(d, PACK);
#undef PACK
    for (size_t at = (d + F_LANES - 1) / F_LANES * F_LANES; at < end; at += F_LANES)
        fstore(packed + at, fzero());
}

static TARGET CLEAR_REGISTERS void pack_shorts(float *packed, const float *q, size_t d,
                                               float scale) {
    const size_t place = attention_factor_place(d);
    for (size_t i = 0; i < 2 * place; i += F_LANES)
        fstore(packed + i, fzero());
    const float size = shorts((int16_t *)(void *)packed, q, NULL, scale, d);
    packed[place] = size;
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* The sums of four vectors' lanes. */
INLINE f4 totals(const fvec v[4]) {
    f8 a = ffold8(v[0]), b = ffold8(v[1]), c = ffold8(v[2]), d = ffold8(v[3]);
    a = f8_add(f8_unpack_low(a, b), f8_unpack_high(a, b));
    c = f8_add(f8_unpack_low(c, d), f8_unpack_high(c, d));
    a = f8_add(f8_pairs_low(a, c), f8_pairs_high(a, c));
    return f4_add(f8_low(a), f8_high(a));
}

/* Vector number i of the group `at` bytes from the start of K's rows for q's rows, whose floats are
 * `vectors` times as far from theirs: a factor that an address can have. */
INLINE void load_q(int rows, int vectors, fvec x[4], const uint8_t *const q[4], size_t at, int i) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        x[r] = fload(q[r] + at * (size_t)vectors + (size_t)i * sizeof(fvec));
        fpin(x[r]);
    }
}

/* Adds the products of a vector of K with those of q to the sums of one token. */
INLINE void multiply(int rows, fvec *sum, fvec u, const fvec x[4]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        sum[r * (CHAINS / rows)] = ffma(u, x[r], sum[r * (CHAINS / rows)]);
}

/* Adds the products of the group `at` bytes from the start of K's rows with q's rows. What is
 * converted once is used for all rows, and q's vectors for all tokens; of the two loops the inner
 * one is that whose vectors all fit into the registers beside the sums. */
INLINE void multiply_group(ccmem_dtype dtype, size_t element, int half, int rows, fvec sum[CHAINS],
                           const uint8_t *const k[CHAINS], const uint8_t *const q[4], size_t at) {
    const int tokens = CHAINS / rows, vectors = vectors_of(element);
    fvec x[4][4];
    if (rows * vectors <= 4) {
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            load_q(rows, vectors, x[i], q, at, i);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                multiply(rows, sum + t, convert(dtype, half, k[t] + at, i), x[i]);
    } else {
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) {
            load_q(rows, vectors, x[0], q, at, i);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
                multiply(rows, sum + t, convert(dtype, half, k[t] + at, i), x[0]);
        }
    }
}

/* Eight scores: of one row, of two, of four. */
INLINE void put_scores(int rows, float *scores, size_t lds, f4 low, f4 high) {
    if (rows < 4) {
        f4_store(scores, low);
        f4_store(rows == 1 ? scores + 4 : scores + lds, high);
    } else {
        f4_store_low(scores, low);
        f4_store_high(scores + lds, low);
        f4_store_low(scores + 2 * lds, high);
        f4_store_high(scores + 3 * lds, high);
    }
}

/* Scores of `rows` rows of q and CHAINS / rows tokens, or those of them that are left: the last one
 * stands in for the others. */
INLINE void score_block(ccmem_dtype dtype, size_t element, int rows, float *scores, size_t lds,
                        const uint8_t *first, size_t stride, size_t left, size_t n, const float *q,
                        size_t ldq) {
    const int tokens = CHAINS / rows;
    const size_t bytes = n * element, whole = bytes / GROUP * GROUP;
    const uint8_t *k[CHAINS], *from[4];
    fvec sum[CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        from[r] = (const uint8_t *)(q + (size_t)r * ldq);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
        k[t] = first + ((size_t)t < left ? (size_t)t : left - 1) * stride;
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++)
        sum[i] = fzero();
    for (size_t at = 0; at < whole; at += GROUP)
        multiply_group(dtype, element, 0, rows, sum, k, from, at);
    if (GROUP > PAD && whole < bytes)
        multiply_group(dtype, element, 1, rows, sum, k, from, whole);
    put_scores(rows, scores, lds, totals(sum), totals(sum + 4));
}

/* The same for bytes. */
INLINE void score_block_bytes(int rows, float *scores, size_t lds, const uint8_t *first,
                              size_t stride, const float *scales, size_t left, size_t n,
                              const float *q, size_t ldq) {
    const int tokens = CHAINS / rows;
    const uint8_t *k[CHAINS], *from[4];
    float size[4];
    VEC sum[CHAINS];
    fvec whole[CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        from[r] = (const uint8_t *)(q + (size_t)r * ldq);
        size[r] = q[(size_t)r * ldq + attention_factor_place(n)];
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
        k[t] = first + ((size_t)t < left ? (size_t)t : left - 1) * stride;
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++)
        sum[i] = vall32(0);
    for (size_t at = 0; at < n; at += 2 * F_LANES) {
        VEC x[4];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            x[r] = vload(from[r] + at * sizeof(int16_t));
            vpin(x[r]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            const VEC u = vwiden8(k[t] + at);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sum[r * tokens + t] = vadd32(sum[r * tokens + t], vmadd16(u, x[r]));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++)
        whole[i] = fints(sum[i]);
    const size_t count = (size_t)tokens < left ? (size_t)tokens : left;
    const f8 s = f8_load_some(scales, f8_lanes_below(count));
    f4 low = totals(whole), high = totals(whole + 4);
    if (rows == 4) {
        const f4 two = f8_low(f8_pairs_low(s, s));
        low = f4_mul(f4_mul(low, two), f4_two(size[0], size[1]));
        high = f4_mul(f4_mul(high, two), f4_two(size[2], size[3]));
    } else {
        low = f4_mul(f4_mul(low, f8_low(s)), f4_two(size[0], size[0]));
        high = f4_mul(f4_mul(high, rows == 2 ? f8_low(s) : f8_high(s)),
                      f4_two(size[rows - 1], size[rows - 1]));
    }
    put_scores(rows, scores, lds, low, high);
}

/* Fetches what will be opened next while a block is multiplied: memory is read at an even pace
 * then, also where a cipher is faster than memory. `at` is what is read of the block now. */
INLINE void fetch(const uint8_t *at, size_t next) {
    __builtin_prefetch((const void *)((uintptr_t)at + next), 0, FETCH);
}

/* ---- scores of blocks ------------------------------------------------------------------------ */

/* Vector number j of element i of the elements that lie together at `from`: `both` is what a pair
 * of bfloat16 was loaded as. */
INLINE fvec column(ccmem_dtype dtype, VEC both, const uint8_t *from, int j, int i) {
    switch (dtype) {
    case CCMEM_F16: return fload_half(from + (size_t)j * F_LANES * 2);
    case CCMEM_BF16: return fbfloats(both, i);
    default: return fload(from + (size_t)j * sizeof(fvec));
    }
}

INLINE VEC load_pairs(ccmem_dtype dtype, const uint8_t *from, int j) {
    VEC both = vall32(0);
    if (dtype == CCMEM_BF16) {
        both = vload(from + (size_t)j * sizeof(VEC));
        vpin(both); /* loaded once */
    }
    return both;
}

/* Adds to the sums of `rows` rows and `vectors` vectors of tokens the products of the elements that
 * lie together at `from`: one, or a pair of bfloat16. As in multiply_group(), what is kept in
 * registers beside the sums is what fits there. */
INLINE void multiply_column(ccmem_dtype dtype, int rows, int vectors, fvec *sum,
                            const uint8_t *from, const uint8_t *const q[4], size_t at) {
    const int pair = (int)attention_pair(dtype);
    if (rows * pair <= 4) {
        fvec x[4][2];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int i = 0; i < pair; i++)
                x[r][i] = fspread((const float *)(const void *)(q[r] + at) + i);
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            const VEC both = load_pairs(dtype, from, j);
#pragma GCC unroll 2
            for (int i = 0; i < pair; i++) {
                const fvec u = column(dtype, both, from, j, i);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
                    sum[r * vectors + j] = ffma(u, x[r][i], sum[r * vectors + j]);
            }
        }
        return;
    }
    VEC both[CHAINS];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++)
        both[j] = load_pairs(dtype, from, j);
#pragma GCC unroll 2
    for (int i = 0; i < pair; i++) {
        fvec u[CHAINS];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            u[j] = column(dtype, both[j], from, j, i);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const fvec x = fspread((const float *)(const void *)(q[r] + at) + i);
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sum[r * vectors + j] = ffma(u[j], x, sum[r * vectors + j]);
        }
    }
}

/* Scores of `vectors` vectors of tokens, the first of them at k, of `all` of a block. `splits`
 * elements, or pairs, are summed up apart: these have as many chains as it takes. */
INLINE void score_columns(ccmem_dtype dtype, size_t element, int rows, int vectors, float *scores,
                          size_t lds, const uint8_t *k, size_t next, size_t all, size_t n,
                          const float *q, size_t ldq) {
    const int splits = CHAINS / rows / vectors, each = rows * vectors;
    const size_t pair = attention_pair(dtype), column = all * pair * element;
    const uint8_t *from[4];
    fvec sum[CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        from[r] = (const uint8_t *)(q + (size_t)r * ldq);
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++)
        sum[i] = fzero();
#pragma GCC unroll 2
    for (size_t at = 0; at < n * sizeof(float); at += (size_t)splits * pair * sizeof(float))
#pragma GCC unroll 8
        for (int s = 0; s < splits; s++, k += column) {
            fetch(k, next);
            multiply_column(dtype, rows, vectors, sum + s * each, k, from,
                            at + (size_t)s * pair * sizeof(float));
        }
#pragma GCC unroll 8
    for (int i = 0; i < each; i++) {
        fvec total = sum[i];
#pragma GCC unroll 8
        for (int s = 1; s < splits; s++)
            total = fadd(total, sum[s * each + i]);
        fstore(scores + (size_t)(i / vectors) * lds + i % vectors * F_LANES, total);
    }
}

/* Pairs of bytes after which sums of 32 bits become floats: 2 * 256 * 127 * 32767 < 2^31. */
enum { PAIRS = 256 };

/* The same for bytes. */
INLINE void score_columns_bytes(int rows, int vectors, float *scores, size_t lds, const uint8_t *k,
                                size_t next, const float *scales, size_t all, size_t n,
                                const float *q, size_t ldq) {
    const int splits = CHAINS / rows / vectors, each = rows * vectors;
    const size_t column = all * 2, pairs = n / 2, size = attention_factor_place(n);
    for (size_t begin = 0; begin < pairs; begin += PAIRS) {
        const size_t end = pairs - begin < PAIRS ? pairs : begin + PAIRS;
        const uint8_t *from[4];
        VEC sum[CHAINS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            from[r] = (const uint8_t *)(q + (size_t)r * ldq);
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++)
            sum[i] = vall32(0);
        for (size_t at = begin; at < end; at += (size_t)splits)
#pragma GCC unroll 8
            for (int s = 0; s < splits; s++, k += column) {
                VEC u[CHAINS];
                fetch(k, next);
#pragma GCC unroll 8
                for (int j = 0; j < vectors; j++)
                    u[j] = vwiden8(k + (size_t)j * F_LANES * 2);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    int32_t both;
                    memcpy(&both, from[r] + (at + (size_t)s) * sizeof both, sizeof both);
                    const VEC x = vall32(both);
#pragma GCC unroll 8
                    for (int j = 0; j < vectors; j++) {
                        VEC *to = &sum[s * each + r * vectors + j];
                        *to = vadd32(*to, vmadd16(u[j], x));
                        vpin(*to); /* gcc 12 kept one of them on the stack: 1.7 times the time */
                    }
                }
            }
#pragma GCC unroll 8
        for (int i = 0; i < each; i++) {
            float *to = scores + (size_t)(i / vectors) * lds + i % vectors * F_LANES;
            fvec total = fints(sum[i]);
#pragma GCC unroll 8
            for (int s = 1; s < splits; s++)
                total = fadd(total, fints(sum[s * each + i]));
            total = fmul(total, fmul(fload(scales + i % vectors * F_LANES),
                                     fspread(q + (size_t)(i / vectors) * ldq + size)));
            fstore(to, begin ? fadd(fload(to), total) : total);
        }
    }
}

/* All tokens: as many vectors at a time as there are chains, then fewer. */
INLINE void block_score_rows(ccmem_dtype dtype, size_t element, int rows, float *scores, size_t lds,
                             const uint8_t *k, size_t next, const float *scales, size_t tokens,
                             size_t n, const float *q, size_t ldq) {
    const int most = CHAINS / rows;
    const size_t word = attention_pair(dtype) * element;
    size_t t = 0;
#define BLOCKS(count)                                                                              \
    if ((count) <= most)                                                                           \
        for (; tokens - t >= (size_t)(count) * F_LANES; t += (size_t)(count) * F_LANES) {          \
            if (dtype == CCMEM_I8)                                                                 \
                score_columns_bytes(rows, count, scores + t, lds, k + t * word, next, scales + t,  \
                                    tokens, n, q, ldq);                                            \
            else                                                                                   \
                score_columns(dtype, element, rows, count, scores + t, lds, k + t * word, next,    \
                              tokens, n, q, ldq);                                                  \
        }
    BLOCKS(8)
    BLOCKS(4)
    BLOCKS(2)
    BLOCKS(1)
#undef BLOCKS
}

/* ---- columns as floats ----------------------------------------------------------------------- */

/* Both rows of a pair from the words at `from`; one row where there are no pairs. */
INLINE void column_words(ccmem_dtype dtype, fvec to[2], const uint8_t *from) {
    switch (dtype) {
    case CCMEM_F16: to[0] = fload_half(from); return;
    case CCMEM_BF16:
        to[0] = fbfloats(vload(from), 0);
        to[1] = fbfloats(vload(from), 1);
        return;
    case CCMEM_I8: {
        /* Multiplied by the pairs (1, 0) and (0, 1): the two as numbers of 32 bits. */
        const VEC both = vwiden8(from);
        to[0] = fints(vmadd16(both, vall32(1)));
        to[1] = fints(vmadd16(both, vall32(1 << 16)));
        return;
    }
    default: to[0] = fload(from);
    }
}

INLINE void columns(ccmem_dtype dtype, size_t element, float *to, size_t ld, const uint8_t *from,
                    const float *scales, size_t inner, size_t count, size_t outer) {
    const size_t pair = attention_pair(dtype), word = pair * element;
    for (size_t r = 0; r < outer; r += pair, from += inner * word)
        for (size_t c = 0; c < count; c += F_LANES) {
            uint8_t rest[F_LANES * sizeof(float)];
            const uint8_t *at = from + c * word;
            const size_t n = count - c < F_LANES ? count - c : F_LANES;
            if (n < F_LANES) { /* there may be no memory behind them */
                copy_secret(rest, at, n * word);
                at = rest;
            }
            fvec both[2];
            column_words(dtype, both, at);
            for (size_t i = 0; i < pair; i++) {
                if (scales)
                    both[i] = fmul(both[i], load_up_to(scales + c, n));
                store_up_to(to + (r + i) * ld + c, n, both[i]);
            }
            if (n < F_LANES)
                ccmem_wipe(rest, sizeof rest);
        }
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* Adds to `vectors` vectors of sums of `rows` rows, which begin with vector number `first` of V's
 * group. */
INLINE void sum_block(ccmem_dtype dtype, size_t element, int half, int rows, int vectors, int first,
                      float *sums, size_t ldo, const float *p, size_t ldp, const uint8_t *v,
                      size_t next, size_t stride, size_t tokens) {
    const int group = vectors_of(element);
    fvec sum[CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sum[r * vectors + j] = fload_aligned(sums + (size_t)r * ldo + j * F_LANES);
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++, v += stride) {
        fvec weight[4];
        fetch(v, next);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            weight[r] = fspread(p + (size_t)r * ldp + t);
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            const int i = first + j;
            const fvec u = convert(dtype, half, v + i / group * GROUP, i % group);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sum[r * vectors + j] = ffma(u, weight[r], sum[r * vectors + j]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            fstore_aligned(sums + (size_t)r * ldo + j * F_LANES, sum[r * vectors + j]);
}

/* Those of one group, which may have more vectors than there are chains for each row. */
INLINE void sum_group(ccmem_dtype dtype, size_t element, int half, int rows, float *sums,
                      size_t ldo, const float *p, size_t ldp, const uint8_t *v, size_t next,
                      size_t stride, size_t tokens) {
    const int group = vectors_of(element), most = CHAINS / rows, step = group < most ? group : most;
#pragma GCC unroll 2
    for (int first = 0; first < group; first += step)
        sum_block(dtype, element, half, rows, step, first, sums + first * F_LANES, ldo, p, ldp, v,
                  next, stride, tokens);
}

/* All vectors of `rows` rows: as many at a time as there are chains, then fewer. */
INLINE void sum_rows(ccmem_dtype dtype, size_t element, int rows, float *sums, size_t ldo,
                     const float *p, size_t ldp, const uint8_t *v, size_t next, size_t stride,
                     size_t tokens, size_t n) {
    const int group = vectors_of(element), most = CHAINS / rows;
    const size_t bytes = n * element, whole = bytes / GROUP * GROUP;
    size_t at = 0;
#define BLOCKS(count)                                                                              \
    if ((count) <= most && (count) >= group)                                                       \
        for (; whole - at >= (size_t)(count) * F_LANES * element;                                  \
             at += (size_t)(count) * F_LANES * element)                                            \
    sum_block(dtype, element, 0, rows, count, 0, sums + at / element, ldo, p, ldp, v + at, next,   \
              stride, tokens)
    BLOCKS(8);
    BLOCKS(4);
    BLOCKS(2);
    BLOCKS(1);
#undef BLOCKS
    if (group > most)
        for (; at < whole; at += GROUP)
            sum_group(dtype, element, 0, rows, sums + at / element, ldo, p, ldp, v + at, next,
                      stride, tokens);
    if (GROUP > PAD && whole < bytes)
        sum_group(dtype, element, 1, rows, sums + at / element, ldo, p, ldp, v + at, next, stride,
                  tokens);
}

/* Adds to `vectors` vectors of sums of `rows` rows, for bfloat16 whose elements lie in pairs of
 * tokens, `stride` bytes a token: p's rows are to V what q's are to K. */
INLINE void sum_block_pairs(int rows, int vectors, float *sums, size_t ldo, const float *p,
                            size_t ldp, const uint8_t *v, size_t next, size_t stride,
                            size_t tokens) {
    const uint8_t *weight[4];
    fvec sum[CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        weight[r] = (const uint8_t *)(p + (size_t)r * ldp);
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sum[r * vectors + j] = fload_aligned(sums + (size_t)r * ldo + j * F_LANES);
    }
    for (size_t t = 0; t < tokens; t += 2, v += 2 * stride) {
#pragma GCC unroll 8
        for (int at = 0; at < vectors * (int)sizeof(VEC); at += LINE)
            fetch(v + at, next);
        multiply_column(CCMEM_BF16, rows, vectors, sum, v, weight, t * sizeof(float));
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            fstore_aligned(sums + (size_t)r * ldo + j * F_LANES, sum[r * vectors + j]);
}

INLINE void sum_rows_pairs(int rows, float *sums, size_t ldo, const float *p, size_t ldp,
                           const uint8_t *v, size_t next, size_t tokens, size_t n) {
    const int most = CHAINS / rows;
    size_t at = 0;
#define BLOCKS(count)                                                                              \
    if ((count) <= most)                                                                           \
        for (; n - at >= (size_t)(count) * F_LANES; at += (size_t)(count) * F_LANES)               \
    sum_block_pairs(rows, count, sums + at, ldo, p, ldp, v + 4 * at, next, 2 * n, tokens)
    BLOCKS(8);
    BLOCKS(4);
    BLOCKS(2);
    BLOCKS(1);
#undef BLOCKS
}

/* p times the scales of up to SCALED tokens and four rows. */
typedef struct weights {
    int16_t weight[4][SCALED];
    float size[4];
} weights;

/* Adds to `vectors` vectors of sums of `rows` rows, for bytes: two tokens at a time, of which the
 * last one may have a weight of 0. `paired`: their elements lie in pairs, as in a block. */
INLINE void sum_block_bytes(int rows, int vectors, int paired, float *sums, size_t ldo,
                            const weights *w, const uint8_t *v, size_t next, size_t stride,
                            size_t tokens) {
    VEC sum[CHAINS];
#pragma GCC unroll 8
    for (int i = 0; i < rows * vectors; i++)
        sum[i] = vall32(0);
    for (size_t t = 0; t < tokens; t += 2, v += 2 * stride) {
        const uint8_t *second = v + (t + 1 < tokens ? stride : 0);
        VEC pair[4];
        fetch(v, next);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            int32_t both;
            memcpy(&both, &w->weight[r][t], sizeof both);
            pair[r] = vall32(both);
        }
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            const VEC u = paired ? vwiden8(v + j * F_LANES * 2)
                                 : vwiden8_pairs(v + j * F_LANES, second + j * F_LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                sum[r * vectors + j] = vadd32(sum[r * vectors + j], vmadd16(u, pair[r]));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            float *to = sums + (size_t)r * ldo + j * F_LANES;
            fstore_aligned(to, ffma(fints(sum[r * vectors + j]), fspread(&w->size[r]),
                                    fload_aligned(to)));
        }
}

INLINE void sum_rows_bytes(int rows, int paired, float *sums, size_t ldo, const float *p,
                           size_t ldp, const uint8_t *v, size_t next, size_t stride,
                           const float *scales, size_t tokens, size_t n, weights *w) {
    const int most = CHAINS / rows;
    for (size_t t = 0; t < tokens; t += SCALED, v += SCALED * stride) {
        const size_t left = tokens - t < SCALED ? tokens - t : SCALED;
        size_t at = 0;
        for (int r = 0; r < rows; r++)
            w->size[r] = shorts(w->weight[r], p + (size_t)r * ldp + t, scales + t, 1.0f, left);
#define BLOCKS(count)                                                                              \
    if ((count) <= most)                                                                           \
        for (; n - at >= (size_t)(count) * F_LANES; at += (size_t)(count) * F_LANES)               \
    sum_block_bytes(rows, count, paired, sums + at, ldo, w, v + (paired ? 2 * at : at), next,      \
                    stride, left)
        BLOCKS(8);
        BLOCKS(4);
        BLOCKS(2);
#undef BLOCKS
    }
}

/* ---- both, for all rows ---------------------------------------------------------------------- */

INLINE void score_rows(ccmem_dtype dtype, size_t element, int rows, float *scores, size_t lds,
                       const uint8_t *k, size_t stride, const float *scales, size_t tokens,
                       size_t n, const float *q, size_t ldq) {
    const size_t step = CHAINS / (size_t)rows;
    for (size_t t = 0; t < tokens; t += step)
        if (dtype == CCMEM_I8)
            score_block_bytes(rows, scores + t, lds, k + t * stride, stride, scales + t, tokens - t,
                              n, q, ldq);
        else
            score_block(dtype, element, rows, scores + t, lds, k + t * stride, stride, tokens - t,
                        n, q, ldq);
}

INLINE void all_scores(ccmem_dtype dtype, size_t element, float *scores, size_t lds,
                       const uint8_t *k, size_t stride, const float *scales, size_t tokens,
                       size_t n, const float *q, size_t ldq, size_t rows) {
    for (; rows >= 4; rows -= 4, scores += 4 * lds, q += 4 * ldq)
        score_rows(dtype, element, 4, scores, lds, k, stride, scales, tokens, n, q, ldq);
    if (rows >= 2) {
        score_rows(dtype, element, 2, scores, lds, k, stride, scales, tokens, n, q, ldq);
        rows -= 2, scores += 2 * lds, q += 2 * ldq;
    }
    if (rows)
        score_rows(dtype, element, 1, scores, lds, k, stride, scales, tokens, n, q, ldq);
}

INLINE void all_block_scores(ccmem_dtype dtype, size_t element, float *scores, size_t lds,
                             const uint8_t *k, size_t next, const float *scales, size_t tokens,
                             size_t n, const float *q, size_t ldq, size_t rows) {
    for (; rows >= 4; rows -= 4, scores += 4 * lds, q += 4 * ldq)
        block_score_rows(dtype, element, 4, scores, lds, k, next, scales, tokens, n, q, ldq);
    if (rows >= 2) {
        block_score_rows(dtype, element, 2, scores, lds, k, next, scales, tokens, n, q, ldq);
        rows -= 2, scores += 2 * lds, q += 2 * ldq;
    }
    if (rows)
        block_score_rows(dtype, element, 1, scores, lds, k, next, scales, tokens, n, q, ldq);
}

/* `paired`: of a block in pairs of rows. */
INLINE void sum_some(ccmem_dtype dtype, size_t element, int paired, int rows, float *sums,
                     size_t ldo, const float *p, size_t ldp, const uint8_t *v, size_t next,
                     size_t stride, size_t tokens, size_t n) {
    if (paired)
        sum_rows_pairs(rows, sums, ldo, p, ldp, v, next, tokens, n);
    else
        sum_rows(dtype, element, rows, sums, ldo, p, ldp, v, next, stride, tokens, n);
}

INLINE void all_sums(ccmem_dtype dtype, size_t element, int paired, float *sums, size_t ldo,
                     const float *p, size_t ldp, const uint8_t *v, size_t next, size_t stride,
                     size_t tokens, size_t n, size_t rows) {
    for (; rows >= 4; rows -= 4, sums += 4 * ldo, p += 4 * ldp)
        sum_some(dtype, element, paired, 4, sums, ldo, p, ldp, v, next, stride, tokens, n);
    if (rows >= 2) {
        sum_some(dtype, element, paired, 2, sums, ldo, p, ldp, v, next, stride, tokens, n);
        rows -= 2, sums += 2 * ldo, p += 2 * ldp;
    }
    if (rows)
        sum_some(dtype, element, paired, 1, sums, ldo, p, ldp, v, next, stride, tokens, n);
}

#define SCORES(type, dtype, element)                                                               \
    static TARGET CLEAR_REGISTERS void scores_##type(float *scores, size_t lds, const uint8_t *k,  \
                                                     size_t stride, const float *scales,           \
                                                     size_t tokens, size_t n, const float *q,      \
                                                     size_t ldq, size_t rows) {                    \
        all_scores(dtype, element, scores, lds, k, stride, scales, tokens, n, q, ldq, rows);       \
    }                                                                                              \
                                                                                                   \
    static TARGET CLEAR_REGISTERS void block_scores_##type(float *scores, size_t lds,              \
                                                           const uint8_t *k, const uint8_t *next,  \
                                                           const float *scales, size_t tokens,     \
                                                           size_t n, const float *q, size_t ldq,   \
                                                           size_t rows) {                          \
        all_block_scores(dtype, element, scores, lds, k, (uintptr_t)next - (uintptr_t)k, scales,   \
                         tokens, n, q, ldq, rows);                                                 \
    }                                                                                              \
                                                                                                   \
    static TARGET CLEAR_REGISTERS void columns_##type(float *to, size_t ld, const uint8_t *from,   \
                                                      const float *scales, size_t inner,           \
                                                      size_t count, size_t outer) {                \
        columns(dtype, element, to, ld, from, scales, inner, count, outer);                        \
    }
SCORES(f32, CCMEM_F32, 4)
SCORES(f16, CCMEM_F16, 2)
SCORES(bf16, CCMEM_BF16, 2)
SCORES(i8, CCMEM_I8, 1)
#undef SCORES

#define SUMS(type, dtype, element)                                                                 \
    static TARGET CLEAR_REGISTERS void sums_##type(float *sums, size_t ldo, const float *p,        \
                                                   size_t ldp, const uint8_t *v, size_t stride,    \
                                                   const float *scales, size_t tokens, size_t n,   \
                                                   size_t rows) {                                  \
        (void)scales;                                                                              \
        all_sums(dtype, element, 0, sums, ldo, p, ldp, v, 0, stride, tokens, n, rows);             \
    }                                                                                              \
                                                                                                   \
    static TARGET CLEAR_REGISTERS void block_sums_##type(float *sums, size_t ldo, const float *p,  \
                                                         size_t ldp, const uint8_t *v,             \
                                                         const uint8_t *next, const float *scales, \
                                                         size_t tokens, size_t n, size_t rows) {   \
        (void)scales;                                                                              \
        all_sums(dtype, element, attention_pair(dtype) > 1, sums, ldo, p, ldp, v,                  \
                 (uintptr_t)next - (uintptr_t)v, n * (element), tokens, n, rows);                  \
    }
SUMS(f32, CCMEM_F32, 4)
SUMS(f16, CCMEM_F16, 2)
SUMS(bf16, CCMEM_BF16, 2)
#undef SUMS

INLINE void all_sums_bytes(int paired, float *sums, size_t ldo, const float *p, size_t ldp,
                           const uint8_t *v, size_t next, size_t stride, const float *scales,
                           size_t tokens, size_t n, size_t rows) {
    weights w;
    for (; rows >= 4; rows -= 4, sums += 4 * ldo, p += 4 * ldp)
        sum_rows_bytes(4, paired, sums, ldo, p, ldp, v, next, stride, scales, tokens, n, &w);
    if (rows >= 2) {
        sum_rows_bytes(2, paired, sums, ldo, p, ldp, v, next, stride, scales, tokens, n, &w);
        rows -= 2, sums += 2 * ldo, p += 2 * ldp;
    }
    if (rows)
        sum_rows_bytes(1, paired, sums, ldo, p, ldp, v, next, stride, scales, tokens, n, &w);
    ccmem_wipe(&w, sizeof w);
}

static TARGET CLEAR_REGISTERS void sums_i8(float *sums, size_t ldo, const float *p, size_t ldp,
                                           const uint8_t *v, size_t stride, const float *scales,
                                           size_t tokens, size_t n, size_t rows) {
    all_sums_bytes(0, sums, ldo, p, ldp, v, 0, stride, scales, tokens, n, rows);
}

static TARGET CLEAR_REGISTERS void block_sums_i8(float *sums, size_t ldo, const float *p,
                                                 size_t ldp, const uint8_t *v, const uint8_t *next,
                                                 const float *scales, size_t tokens, size_t n,
                                                 size_t rows) {
    all_sums_bytes(1, sums, ldo, p, ldp, v, (uintptr_t)next - (uintptr_t)v, n, scales, tokens, n,
                   rows);
}

/* ---- softmax --------------------------------------------------------------------------------- */

static TARGET CLEAR_REGISTERS float highest(const float *scores, size_t n) {
    const fvec none = fall(float_of_bits(0xff800000));
    fvec most = none;
#define HIGHEST(at, count)                                                                         \
    most = fmost((count) == F_LANES ? fload(scores + (at))                                         \
                                    : fsome(count, fload_some(scores + (at), count), none),        \
                 most)
    EACH_VECTOR(n, HIGHEST);
#undef HIGHEST
    return f8_highest(ffold8_most(most));
}

/* exp(r) - 1; *power is 2^t: kernels/exponential.h. */
INLINE fvec exp_rest(fvec y, fvec *power) {
    const fvec shifted = ffma(y, fall(EXP_PER_LN2), fall(EXP_ROUND));
    const fvec t = fsub(shifted, fall(EXP_ROUND));
    const fvec r = ffma(t, fall(-EXP_LN2_LOW), ffma(t, fall(-EXP_LN2_HIGH), y));
    fvec c = ffma(r, fall(EXP_C6), fall(EXP_C5));
    c = ffma(r, c, fall(EXP_C4));
    c = ffma(r, c, fall(EXP_C3));
    c = ffma(r, c, fall(EXP_C2));
    *power = fshl(shifted, 23);
    return ffma(fmul(r, r), c, r);
}

static TARGET CLEAR_REGISTERS float exponentials(float *scores, size_t n, float most) {
    /* -infinity less itself would not be a number. */
    const fvec from = fmost(fall(most), fall(float_of_bits(0xff7fffff)));
    fvec sum = fzero();
#define EXPONENTIAL(at, count)                                                                     \
    do {                                                                                           \
        const fvec y = fsub(load_up_to(scores + (at), count), from);                               \
        fvec power;                                                                                \
        const fvec rest = exp_rest(y, &power);                                                     \
        const fvec e = fclear_less(ffma(power, rest, power), y, fall(EXP_LOWEST));                 \
        store_up_to(scores + (at), count, e);                                                      \
        sum = fadd(sum, (count) == F_LANES ? e : fsome(count, e, fzero()));                        \
    } while (0)
    EACH_VECTOR(n, EXPONENTIAL);
#undef EXPONENTIAL
    return f8_total(ffold8(sum));
}

/* tanh |x| = -m / (2 + m), m = exp(-2 |x|) - 1. */
static TARGET CLEAR_REGISTERS void soften(float *scores, size_t n, float cap) {
    const fvec twice = fall(-2.0f / cap);
#define SOFTEN(at, count)                                                                          \
    do {                                                                                           \
        const fvec score = load_up_to(scores + (at), count);                                       \
        const fvec y = fmost(fall(EXP_LOWEST), fmul(fsize(score), twice));                         \
        fvec power;                                                                                \
        const fvec rest = exp_rest(y, &power);                                                     \
        const fvec m = ffma(power, rest, fsub(power, fall(1.0f)));                                 \
        const fvec size = fdiv(fmul(fall(cap), fsub(fzero(), m)), fadd(fall(2.0f), m));            \
        store_up_to(scores + (at), count, fsigned(size, score));                                   \
    } while (0)
    EACH_VECTOR(n, SOFTEN);
#undef SOFTEN
}

static TARGET CLEAR_REGISTERS void scale(float *values, size_t n, float f) {
    const fvec factor = fall(f);
#define SCALE(at, count)                                                                           \
    store_up_to(values + (at), count, fmul(load_up_to(values + (at), count), factor))
    EACH_VECTOR(n, SCALE);
#undef SCALE
}

/* ---- rows to be sealed ----------------------------------------------------------------------- */

static TARGET CLEAR_REGISTERS void store_f32(void *to, const float *from, size_t d) {
#define STORE(at, count) store_up_to((float *)to + (at), count, load_up_to(from + (at), count))
    EACH_VECTOR(d, STORE);
#undef STORE
}

/* The last ones of a row by way of memory of their own. */
#define STORE(name, element, operation)                                                            \
    static TARGET CLEAR_REGISTERS void name(void *to, const float *from, size_t d) {               \
        element *out = to;                                                                         \
        for (; d >= F_LANES; d -= F_LANES, from += F_LANES, out += F_LANES)                        \
            operation(out, fload(from));                                                           \
        if (d) {                                                                                   \
            element some[F_LANES];                                                                 \
            operation(some, fload_some(from, d));                                                  \
            for (size_t i = 0; i < d; i++)                                                         \
                out[i] = some[i];                                                                  \
            ccmem_wipe(some, sizeof some);                                                         \
        }                                                                                          \
    }
STORE(store_f16, uint16_t, fstore_half)
STORE(store_bf16, uint16_t, fstore_bfloat)
#undef STORE

static TARGET CLEAR_REGISTERS void quantise(int8_t *to, float *scale, const float *from, size_t d) {
    fvec most = fzero();
#define SIZE(at, count) most = fmost(fsize(load_up_to(from + (at), count)), most)
    EACH_VECTOR(d, SIZE);
#undef SIZE
    const byte_scale s = byte_scale_of(f8_highest(ffold8_most(most)));
    const fvec enlarge = fall(s.enlarge), per_step = fall(s.per_step);
    *scale = s.scale;
    for (; d >= F_LANES; d -= F_LANES, from += F_LANES, to += F_LANES)
        fstore_byte(to, fmul(fmul(fload(from), enlarge), per_step));
    if (d) {
        int8_t some[F_LANES];
        fstore_byte(some, fmul(fmul(fload_some(from, d), enlarge), per_step));
        for (size_t i = 0; i < d; i++)
            to[i] = some[i];
        ccmem_wipe(some, sizeof some);
    }
}

const attention_ops ATTENTION_OPS = {
    .pack = {[CCMEM_F32] = pack, [CCMEM_F16] = pack, [CCMEM_BF16] = pack, [CCMEM_I8] = pack_shorts},
    .scores = {[CCMEM_F32] = scores_f32,
               [CCMEM_F16] = scores_f16,
               [CCMEM_BF16] = scores_bf16,
               [CCMEM_I8] = scores_i8},
    .sums = {[CCMEM_F32] = sums_f32,
             [CCMEM_F16] = sums_f16,
             [CCMEM_BF16] = sums_bf16,
             [CCMEM_I8] = sums_i8},
    .block_scores = {[CCMEM_F32] = block_scores_f32,
                     [CCMEM_F16] = block_scores_f16,
                     [CCMEM_BF16] = block_scores_bf16,
                     [CCMEM_I8] = block_scores_i8},
    .block_sums = {[CCMEM_F32] = block_sums_f32,
                   [CCMEM_F16] = block_sums_f16,
                   [CCMEM_BF16] = block_sums_bf16,
                   [CCMEM_I8] = block_sums_i8},
    .columns = {[CCMEM_F32] = columns_f32,
                [CCMEM_F16] = columns_f16,
                [CCMEM_BF16] = columns_bf16,
                [CCMEM_I8] = columns_i8},
    .highest = highest,
    .exponentials = exponentials,
    .soften = soften,
    .scale = scale,
    .store = {[CCMEM_F32] = store_f32, [CCMEM_F16] = store_f16, [CCMEM_BF16] = store_bf16},
    .quantise = quantise};
