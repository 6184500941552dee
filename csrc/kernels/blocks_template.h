/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of block-quantised rows on vectors of 32 bytes. A tier file defines TARGET, B32_VNNI
 * where it has it, includes simd/b32.h and simd/f8.h, defines BLOCKS_OPS, the name of the table,
 * then includes this file once.
 *
 * A run of 32 elements is one vector: its products with x, those of four elements added, are exact
 * 32-bit numbers. What is summed up in floats is a run's, or a block's, whole sum: those of eight
 * runs, or of four blocks, are added across the lanes together.
 *
 * Pairs of products must not saturate 16 bits where they are added in such (all but b32_dot8 with
 * VNNI): q of up to 128, unsigned, times x of up to 127, twice, are 32512. Hence signed q of W are
 * taken as their size, times x with q's sign; -128 has the size 128, and x is never -128. */
#include <string.h>

#ifdef B32_VNNI
enum { VNNI = 1 };
#else
enum { VNNI = 0 };
#endif

/* What a loop over formats is made for, one function each; the numbers of runs are a block's. */
typedef enum kind {
    KIND_Q4_0,
    KIND_Q4_1,
    KIND_Q5_0,
    KIND_Q5_1,
    KIND_Q8_0,
    KIND_IQ4_NL,
    KIND_INT4,
    KIND_INT4_ZP,
    KIND_INT8,
    KIND_INT8_ZP,
    KIND_Q2_K,
    KIND_Q3_K,
    KIND_Q4_K,
    KIND_Q5_K,
    KIND_Q6_K,
    KIND_IQ4_XS
} kind;

/* The float16, or float32, at p. */
INLINE float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

INLINE float float_at(const uint8_t *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}

INLINE uint32_t word32(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* ---- q's of a run ---------------------------------------------------------------------------- */

/* 16 bytes: their lower halves, then their upper ones. */
INLINE b32 nibbles(const uint8_t *p) {
    return b32_and(b32_shr_each(b32_twice(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)),
                   b32_all8(15));
}

/* 16 in each byte whose bit of 32 is set. */
INLINE b32 fifth_bits(const uint8_t *p) {
    const b32 from =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const b32 bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const b32 bits = b32_choose(b32_all32(word32(p)), from);
    return b32_and(b32_same8(b32_and(bits, bit), bit), b32_all8(16));
}

INLINE b32 iq4_values(b32 indices) {
    static const _Alignas(16) int8_t values[16] = IQ4_VALUES;
    return b32_choose(b32_twice(values), indices);
}

INLINE int has_sign(kind k) {
    return k == KIND_Q8_0 || k == KIND_IQ4_NL || k == KIND_INT8 || k == KIND_INT8_ZP ||
           k == KIND_IQ4_XS;
}

INLINE int has_offset(kind k) {
    return k == KIND_Q4_1 || k == KIND_Q5_1 || k == KIND_INT4_ZP || k == KIND_INT8_ZP;
}

/* Where x brings what an unsigned q has too much of. */
INLINE int has_less(kind k) {
    return k == KIND_Q4_0 || k == KIND_Q5_0 || k == KIND_INT4 ||
           (VNNI && (k == KIND_Q8_0 || k == KIND_IQ4_NL || k == KIND_INT8 || k == KIND_INT8_ZP));
}

INLINE size_t head_bytes(kind k) {
    switch (k) {
    case KIND_Q4_1: return Q4_1_Q;
    case KIND_Q5_0: return Q5_0_Q;
    case KIND_Q5_1: return Q5_1_Q;
    case KIND_INT4:
    case KIND_INT8: return GROUP_HEAD;
    case KIND_INT4_ZP:
    case KIND_INT8_ZP: return GROUP_HEAD_ZP;
    default: return Q4_0_Q;
    }
}

INLINE size_t run_bytes(kind k) {
    return k == KIND_Q8_0 || k == KIND_INT8 || k == KIND_INT8_ZP ? 32 : 16;
}

INLINE b32 run_of(kind k, const uint8_t *head, const uint8_t *q) {
    switch (k) {
    case KIND_Q8_0:
    case KIND_INT8:
    case KIND_INT8_ZP: return b32_load(q);
    case KIND_IQ4_NL: return iq4_values(nibbles(q));
    case KIND_Q5_0: return b32_or(nibbles(q), fifth_bits(head + Q5_0_HIGH));
    case KIND_Q5_1: return b32_or(nibbles(q), fifth_bits(head + Q5_1_HIGH));
    default: return nibbles(q);
    }
}

INLINE float scale_of(kind k, const uint8_t *head) {
    switch (k) {
    case KIND_INT4:
    case KIND_INT4_ZP:
    case KIND_INT8:
    case KIND_INT8_ZP: return float_at(head + GROUP_SCALE);
    default: return half_at(head);
    }
}

INLINE float offset_of(kind k, const uint8_t *head) {
    switch (k) {
    case KIND_Q4_1: return half_at(head + Q4_1_M);
    case KIND_Q5_1: return half_at(head + Q5_1_M);
    default: return float_at(head + GROUP_OFFSET);
    }
}

/* ---- sums of vectors ------------------------------------------------------------------------- */

INLINE b32 eight_totals(const b32 v[8]) {
    const b32 a = b32_pairs32(b32_pairs32(v[0], v[1]), b32_pairs32(v[2], v[3]));
    const b32 b = b32_pairs32(b32_pairs32(v[4], v[5]), b32_pairs32(v[6], v[7]));
    return b32_add32(b32_outer(a, b), b32_inner(a, b));
}

INLINE f4 four_totals(const b32 v[4]) {
    const b32 a = b32_pairs32(b32_pairs32(v[0], v[1]), b32_pairs32(v[2], v[3]));
    return _mm_cvtepi32_ps(_mm_add_epi32(b32_low(a), b32_high(a)));
}

INLINE int32_t one_total(b32 v) {
    b16 t = _mm_add_epi32(b32_low(v), b32_high(v));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}

/* a * b + *to, rounded once. */
INLINE void add_product(float *to, float a, float b) {
    _mm_store_ss(to, _mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_load_ss(to)));
}

/* ---- blocks of 32 elements, and groups ------------------------------------------------------- */

INLINE const uint8_t *row_of(const blocks_x *x, int r) { return x->row + (size_t)r * x->at.bytes; }

INLINE const float *scales_of_row(const blocks_x *x, int r) {
    return (const float *)(const void *)(row_of(x, r) + x->at.scale);
}

/* Of runs: what the sum of products has too much, or too little, and what an offset is multiplied
 * with. */
INLINE const int32_t *less_of_row(const blocks_x *x, int r) {
    return (const int32_t *)(const void *)(row_of(x, r) + x->at.sums);
}

INLINE const float *sums_of_row(const blocks_x *x, int r) {
    return (const float *)(const void *)(row_of(x, r) + x->at.more);
}

/* q's as they are multiplied: those without a sign as run_products() takes them. */
INLINE b32 prepared(kind k, b32 q) {
    return has_sign(k) && has_less(k) ? b32_xor(q, b32_all8(-128)) : q;
}

/* The products of a run of W with one of x, but for `less`. */
INLINE b32 run_products(kind k, b32 q, const uint8_t *x) {
    const b32 xq = b32_load_aligned(x);
    if (has_sign(k) && !has_less(k))
        return b32_dot8(b32_zero(), b32_size8(q), b32_sign8(xq, q));
    return b32_dot8(b32_zero(), q, xq);
}

/* Where a row's run lies: `runs` of them follow the head of each block. */
INLINE const uint8_t *head_of(kind k, const uint8_t *w, size_t runs, size_t i) {
    return w + i / runs * (head_bytes(k) + runs * run_bytes(k));
}

INLINE b32 prepared_run(kind k, const uint8_t *head, size_t runs, size_t i) {
    return prepared(k, run_of(k, head, head + head_bytes(k) + i % runs * run_bytes(k)));
}

/* The float16 at p and in the same place of seven more blocks. */
INLINE f8 eight_halves(const uint8_t *p, size_t bytes) {
    uint16_t half[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        memcpy(&half[i], p + i * bytes, sizeof half[i]);
    b16 v = _mm_cvtsi32_si128(half[0]);
    v = _mm_insert_epi16(v, half[1], 1);
    v = _mm_insert_epi16(v, half[2], 2);
    v = _mm_insert_epi16(v, half[3], 3);
    v = _mm_insert_epi16(v, half[4], 4);
    v = _mm_insert_epi16(v, half[5], 5);
    v = _mm_insert_epi16(v, half[6], 6);
    v = _mm_insert_epi16(v, half[7], 7);
    return _mm256_cvtph_ps(v);
}

/* The same floats of the blocks of eight runs. */
INLINE f8 eight_floats(kind k, const uint8_t *w, size_t runs, size_t at) {
    float f[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        f[i] = float_at(head_of(k, w, runs, i) + at);
    return _mm256_setr_ps(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]);
}

INLINE int is_group(kind k) { return k >= KIND_INT4 && k <= KIND_INT8_ZP; }

/* Eight runs, from the first lane on: all is converted, scaled and added at once. */
INLINE void add_eight(kind k, int rows, f8 *sums, const uint8_t *w, size_t runs, const blocks_x *x,
                      size_t run) {
    const size_t bytes = head_bytes(k) + run_bytes(k);
    const f8 d = is_group(k) ? eight_floats(k, w, runs, GROUP_SCALE) : eight_halves(w, bytes);
    const f8 m = !has_offset(k) ? d
                 : is_group(k)  ? eight_floats(k, w, runs, GROUP_OFFSET)
                                : eight_halves(w + 2, bytes);
    b32 q[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        q[i] = prepared_run(k, head_of(k, w, runs, i), runs, i);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const uint8_t *xq = row_of(x, r) + run * BLOCKS_RUN;
        b32 v[8];
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            v[i] = run_products(k, q[i], xq + i * BLOCKS_RUN);
        b32 whole = eight_totals(v);
        if (has_less(k))
            whole = b32_add32(whole, b32_load(less_of_row(x, r) + run));
        sums[r] = f8_fma(f8_of_ints(whole), f8_mul(d, f8_load(scales_of_row(x, r) + run)), sums[r]);
        if (has_offset(k))
            sums[r] = f8_fma(f8_load(sums_of_row(x, r) + run), m, sums[r]);
    }
}

INLINE void add_run(kind k, int rows, float *sums, const uint8_t *head, size_t runs, size_t i,
                    const blocks_x *x, size_t run) {
    const b32 q = prepared_run(k, head, runs, i);
    const float d = scale_of(k, head);
    for (int r = 0; r < rows; r++) {
        float *lane = sums + r * BLOCKS_LANES + run % BLOCKS_LANES;
        int32_t whole = one_total(run_products(k, q, row_of(x, r) + run * BLOCKS_RUN));
        if (has_less(k))
            whole += less_of_row(x, r)[run];
        add_product(lane, (float)whole, d * scales_of_row(x, r)[run]);
        if (has_offset(k))
            add_product(lane, sums_of_row(x, r)[run], offset_of(k, head));
    }
}

INLINE void add_runs(kind k, int rows, float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                     size_t first) {
    const size_t runs = is_group(k) ? block_formats[x->format].elements / BLOCKS_RUN : 1;
    size_t run = first * runs, i = 0;
    const size_t end = run + n * runs;
    for (; run < end && run % BLOCKS_LANES; run++, i++)
        add_run(k, rows, sums, head_of(k, w, runs, i), runs, i, x, run);
    if (end - run >= BLOCKS_LANES) {
        f8 sum[BLOCKS_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            sum[r] = f8_load(sums + r * BLOCKS_LANES);
        for (; end - run >= BLOCKS_LANES; run += BLOCKS_LANES, i += BLOCKS_LANES)
            add_eight(k, rows, sum, head_of(k, w, runs, i), runs, x, run);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            f8_store(sums + r * BLOCKS_LANES, sum[r]);
    }
    for (; run < end; run++, i++)
        add_run(k, rows, sums, head_of(k, w, runs, i), runs, i, x, run);
}

/* ---- blocks of 256 elements ------------------------------------------------------------------ */

/* What a block's 8 runs are multiplied with: 16-bit number s of each half for that half of run s;
 * and what is taken away. */
typedef struct scales {
    b32 steps; /* the scales of groups of q's, in each half number s is of run s */
    b32 least; /* the offsets of groups, as x's sums ask for them */
} scales;

/* Indices of bytes that become 16-bit numbers. */
#define STEPS_LOW ((int64_t)0xff03ff02ff01ff00)
#define STEPS_HIGH ((int64_t)0xff07ff06ff05ff04)

/* 16 bytes as 16-bit numbers: those with even numbers, then the others. */
INLINE b32 sorted_halves(b16 bytes) {
    return b32_widen8(_mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7,
                                                            9, 11, 13, 15)));
}

/* Q4_K's and Q5_K's scales and offsets: quant/unpack.c says how they lie. As bytes they are eight
 * scales, then eight offsets, each four from words that lie behind d and m. */
INLINE scales six_bits(const uint8_t *block) {
    const b16 words = _mm_loadu_si128((const b16 *)(const void *)block);
    const b16 low =
        _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi32(words, 0xed), _mm_setr_epi32(0, 0, 0, 4)),
                      _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const b16 high = _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi32(words, 0x84), 2),
                                   _mm_setr_epi32(0, 0x30303030, 0, 0x30303030));
    const b32 both = _mm256_broadcastsi128_si256(_mm_or_si128(low, high));
    return (scales){.steps = b32_choose(both, _mm256_setr_epi64x(STEPS_LOW, STEPS_HIGH, STEPS_LOW,
                                                                 STEPS_HIGH)),
                    .least = b32_choose(both, _mm256_setr_epi32((int)0xffffff08, (int)0xffffff09,
                                                                (int)0xffffff0a, (int)0xffffff0b,
                                                                (int)0xffffff0c, (int)0xffffff0d,
                                                                (int)0xffffff0e, (int)0xffffff0f))};
}

/* Q3_K's. */
INLINE b16 six_bits_signed(const uint8_t *p) {
    const uint32_t a = word32(p), b = word32(p + 4), c = word32(p + 8);
    const uint32_t low = 0x0f0f0f0f, two = 0x30303030;
    return _mm_sub_epi8(_mm_setr_epi32((int)((a & low) | (c << 4 & two)),
                                       (int)((b & low) | (c << 2 & two)),
                                       (int)((a >> 4 & low) | (c & two)),
                                       (int)((b >> 4 & low) | (c >> 2 & two))),
                        _mm_set1_epi8(32));
}

INLINE b32 iq4_steps(const uint8_t *block) {
    uint16_t high;
    memcpy(&high, block + IQ4_XS_HIGH, sizeof high);
    const b32 low = b32_and(b32_shr_each(b32_all32(word32(block + IQ4_XS_LOW)),
                                         _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)),
                            b32_all32(15));
    const b32 top =
        b32_and(b32_shr_each(b32_all32(high), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)),
                b32_all32(3));
    const b32 each = b32_sub32(b32_or(low, b32_shl32(top, 4)), b32_all32(32));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(each, each), 0x88);
}

INLINE scales scales_of(kind k, const uint8_t *w) {
    scales s = {0};
    b16 bytes;
    switch (k) {
    case KIND_Q4_K:
    case KIND_Q5_K: return six_bits(w);
    case KIND_Q2_K:
        bytes = _mm_loadu_si128((const b16 *)(const void *)(w + Q2_K_SCALES));
        s.steps = sorted_halves(_mm_and_si128(bytes, _mm_set1_epi8(15)));
        s.least = b32_widen_u8(_mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)));
        break;
    case KIND_Q3_K:
        bytes = six_bits_signed(w + Q3_K_SCALES);
        s.steps = sorted_halves(bytes);
        s.least = b32_widen8(bytes);
        break;
    case KIND_Q6_K:
        bytes = _mm_loadu_si128((const b16 *)(const void *)(w + Q6_K_SCALES));
        s.steps = sorted_halves(bytes);
        s.least = b32_widen8(bytes);
        break;
    default: s.steps = iq4_steps(w);
    }
    return s;
}

/* Bit number `from` of each byte as bit `to`. */
INLINE b32 move_bits(b32 v, int from, int to, int bits) {
    const b32 moved = from > to ? b32_shr16(v, from - to) : b32_shl16(v, to - from);
    return b32_and(moved, b32_all8(bits << to));
}

/* Run s of a block. */
INLINE b32 super_run(kind k, const uint8_t *w, int s) {
    const int half = s / 4, j = s % 4;
    switch (k) {
    case KIND_Q2_K: return move_bits(b32_load(w + Q2_K_Q + 32 * half), 2 * j, 0, 3);
    case KIND_Q3_K:
        return b32_or(move_bits(b32_load(w + Q3_K_Q + 32 * half), 2 * j, 0, 3),
                      move_bits(b32_load(w + Q3_K_HIGH), s, 2, 1));
    case KIND_Q4_K: return move_bits(b32_load(w + Q4_K_Q + 32 * (s / 2)), 4 * (s % 2), 0, 15);
    case KIND_Q5_K:
        return b32_or(move_bits(b32_load(w + Q5_K_Q + 32 * (s / 2)), 4 * (s % 2), 0, 15),
                      move_bits(b32_load(w + Q5_K_HIGH), s, 4, 1));
    case KIND_Q6_K:
        return b32_or(move_bits(b32_load(w + Q6_K_Q + 64 * half + 32 * (j % 2)), 4 * (j / 2), 0,
                                15),
                      move_bits(b32_load(w + Q6_K_HIGH + 32 * half), 2 * j, 4, 3));
    default: return iq4_values(nibbles(w + IQ4_XS_Q + 16 * s));
    }
}

INLINE size_t super_bytes(kind k) {
    switch (k) {
    case KIND_Q2_K: return 84;
    case KIND_Q3_K: return 110;
    case KIND_Q4_K: return 144;
    case KIND_Q5_K: return 176;
    case KIND_Q6_K: return 210;
    default: return 136;
    }
}

INLINE int has_least(kind k) { return k == KIND_Q2_K || k == KIND_Q4_K || k == KIND_Q5_K; }

/* The bits by which q - zero is zero's multiple; 0: q has no zero. */
INLINE int zero_bits(kind k) { return k == KIND_Q6_K ? 5 : k == KIND_Q3_K ? 2 : 0; }

INLINE size_t place_of_d(kind k) {
    switch (k) {
    case KIND_Q2_K: return Q2_K_D;
    case KIND_Q3_K: return Q3_K_D;
    case KIND_Q6_K: return Q6_K_D;
    default: return Q4_K_D;
    }
}

/* Products of a block's offsets, or of its scales, with sums of x. */
INLINE b32 least_products(kind k, b32 least, const blocks_x *x, int r, size_t block) {
    const uint8_t *row = row_of(x, r);
    if (k == KIND_Q4_K || k == KIND_Q5_K)
        return b32_madd16(least, b32_widen_u16(row + x->at.more + 16 * block));
    return b32_madd16(least, b32_load(row + x->at.sums + 32 * block));
}

/* c + the products of runs 2 * i and 2 * i + 1 of W with x, times the runs' scales. Without a sign,
 * sums of four products fit into 16 bits. */
INLINE b32 super_products(kind k, b32 c, int i, const b32 q[2], b32 steps, const uint8_t *x) {
    const int64_t first = 0x0100010001000100 + 0x0404040404040404 * i;
    const int64_t second = first + 0x0202020202020202;
    const b32 x0 = b32_load_aligned(x), x1 = b32_load_aligned(x + BLOCKS_RUN);
    if (VNNI && !has_sign(k)) {
        const b32 fours =
            _mm256_packs_epi32(b32_dot8(b32_zero(), q[0], x0), b32_dot8(b32_zero(), q[1], x1));
        return b32_dot16(c, fours,
                         b32_choose(steps, _mm256_setr_epi64x(first, second, first, second)));
    }
    const b32 step0 = b32_choose(steps, _mm256_set1_epi64x(first));
    const b32 step1 = b32_choose(steps, _mm256_set1_epi64x(second));
    if (has_sign(k)) {
        c = b32_dot16(c, b32_madd8(b32_size8(q[0]), b32_sign8(x0, q[0])), step0);
        return b32_dot16(c, b32_madd8(b32_size8(q[1]), b32_sign8(x1, q[1])), step1);
    }
    return b32_dot16(b32_dot16(c, b32_madd8(q[0], x0), step0), b32_madd8(q[1], x1), step1);
}

/* Of a block and each row r of x: sums, the totals of whose lanes are what is multiplied with d, to
 * whole[8 * r], and with m, to least[8 * r]. */
INLINE void block_sums(kind k, int rows, b32 *whole, b32 *least, const uint8_t *w,
                       const blocks_x *x, size_t block) {
    const scales s = scales_of(k, w);
    b32 even[BLOCKS_ROWS], odd[BLOCKS_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        even[r] = odd[r] = b32_zero();
        if (zero_bits(k))
            even[r] = b32_sub32(b32_zero(),
                                b32_shl32(least_products(k, s.least, x, r, block), zero_bits(k)));
        if (has_least(k))
            least[8 * r] = least_products(k, s.least, x, r, block);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const b32 q[2] = {super_run(k, w, 2 * i), super_run(k, w, 2 * i + 1)};
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            b32 *sum = i % 2 ? &odd[r] : &even[r];
            *sum = super_products(k, *sum, i, q, s.steps,
                                  row_of(x, r) + block * BLOCK_SUPER + 2 * BLOCKS_RUN * (size_t)i);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        whole[8 * r] = b32_add32(even[r], odd[r]);
}

/* Four blocks' d, and m in the upper half. */
INLINE f8 four_scales(kind k, const uint8_t *w) {
    const size_t bytes = super_bytes(k);
    const uint8_t *p = w + place_of_d(k);
    if (!has_least(k)) {
        uint16_t half[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            memcpy(&half[i], p + i * bytes, sizeof half[i]);
        return f8_of4(_mm_cvtph_ps(_mm_setr_epi16((short)half[0], (short)half[1], (short)half[2],
                                                  (short)half[3], 0, 0, 0, 0)));
    }
    const b16 pairs = _mm_setr_epi32((int)word32(p), (int)word32(p + bytes),
                                     (int)word32(p + 2 * bytes), (int)word32(p + 3 * bytes));
    return _mm256_cvtph_ps(_mm_shuffle_epi8(pairs, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6,
                                                                 7, 10, 11, 14, 15)));
}

/* Four blocks, from the first or the fifth lane on. */
INLINE void add_four(kind k, int rows, float *sums, const uint8_t *w, const blocks_x *x,
                     size_t block) {
    b32 v[8 * BLOCKS_ROWS]; /* of each row: four blocks' sums, and four that go with offsets */
    const f8 d = four_scales(k, w);
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        block_sums(k, rows, v + i, v + 4 + i, w + i * super_bytes(k), x, block + i);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        float *lanes = sums + r * BLOCKS_LANES + block % BLOCKS_LANES;
        const float *scale = scales_of_row(x, r) + block;
        f4 sum = f4_load(lanes);
        if (has_least(k)) {
            const f8 whole = f8_of_ints(eight_totals(v + 8 * r)), by = f8_mul(d, f8_of_four(scale));
            sum = f4_fma(f8_low(whole), f8_low(by), sum);
            sum = f4_fnma(f8_high(whole), f8_high(by), sum);
        } else {
            sum = f4_fma(four_totals(v + 8 * r), f4_mul(f8_low(d), f4_load(scale)), sum);
        }
        f4_store(lanes, sum);
    }
}

INLINE void add_block(kind k, int rows, float *sums, const uint8_t *w, const blocks_x *x,
                      size_t block) {
    b32 whole[8 * BLOCKS_ROWS], least[8 * BLOCKS_ROWS];
    const float d = half_at(w + place_of_d(k));
    block_sums(k, rows, whole, least, w, x, block);
    for (int r = 0; r < rows; r++) {
        float *lane = sums + r * BLOCKS_LANES + block % BLOCKS_LANES;
        const float scale = scales_of_row(x, r)[block];
        add_product(lane, (float)one_total(whole[8 * r]), d * scale);
        if (has_least(k))
            add_product(lane, -(float)one_total(least[8 * r]),
                        half_at(w + place_of_d(k) + 2) * scale);
    }
}

INLINE void add_blocks(kind k, int rows, float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                       size_t first) {
    const size_t end = first + n;
    for (; first < end && first % 4; first++, w += super_bytes(k))
        add_block(k, rows, sums, w, x, first);
    for (; end - first >= 4; first += 4, w += 4 * super_bytes(k))
        add_four(k, rows, sums, w, x, first);
    for (; first < end; first++, w += super_bytes(k))
        add_block(k, rows, sums, w, x, first);
}

/* ---- two rows of W of Q4_K, and one row of x ---------------------------------------------------
 */

/* Without VNNI a row of W waits for loads, two of 32 bytes a cycle: 35 for a block of 256, most of
 * them of x and of indices. Here two rows of W share these: 7.2 ns for a block became 5.7 (Zen 3).
 * Vectors of scales and of sums have a row in each half. */

/* Keeps v in a register: GCC would load it once for each use. */
#define PIN(v) __asm__("" : "+x"(v))

INLINE b32 four_pairs(const b32 v[4]) {
    return b32_pairs32(b32_pairs32(v[0], v[1]), b32_pairs32(v[2], v[3]));
}

INLINE b32 two_heads(const uint8_t *a, const uint8_t *b) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(
                                       _mm_loadu_si128((const b16 *)(const void *)a)),
                                   _mm_loadu_si128((const b16 *)(const void *)b), 1);
}

/* six_bits() of two blocks: in each half eight scales, then eight offsets, all of them bytes. */
INLINE b32 six_bits_two(b32 heads) {
    const b32 low = b32_and(b32_shr_each(_mm256_shuffle_epi32(heads, 0xed),
                                         _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4)),
                            _mm256_set1_epi64x(0x0f0f0f0f3f3f3f3f));
    const b32 high = b32_and(_mm256_srli_epi32(_mm256_shuffle_epi32(heads, 0x84), 2),
                             _mm256_set1_epi64x(0x3030303000000000));
    return b32_or(low, high);
}

/* c + the products of runs 2 * i and 2 * i + 1, q, with those of x. */
INLINE b32 two_runs(b32 c, b32 q, b32 x0, b32 x1, b32 six, int i) {
    const b32 step0 = b32_choose(six, b32_all16(0xff00 | 2 * i));
    const b32 step1 = b32_choose(six, b32_all16(0xff01 | 2 * i));
    c = b32_dot16(c, b32_madd8(b32_and(q, b32_all8(15)), x0), step0);
    return b32_dot16(c, b32_madd8(b32_and(b32_shr16(q, 4), b32_all8(15)), x1), step1);
}

/* Sums of block number `block` of two rows, each in its half. `six` is what six_bits_two() made. */
INLINE b32 two_blocks(const uint8_t *w0, const uint8_t *w1, const uint8_t *six, const uint8_t *x) {
    b32 six0 = b32_twice(six), six1 = b32_twice(six + 16), sum0 = b32_zero(), sum1 = b32_zero();
    PIN(six0);
    PIN(six1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, x += 2 * BLOCKS_RUN) {
        b32 q0 = b32_load(w0 + Q4_K_Q + 32 * i), q1 = b32_load(w1 + Q4_K_Q + 32 * i);
        b32 x0 = b32_load_aligned(x), x1 = b32_load_aligned(x + BLOCKS_RUN);
        PIN(q0);
        PIN(q1);
        PIN(x0);
        PIN(x1);
        sum0 = two_runs(sum0, q0, x0, x1, six0, i);
        sum1 = two_runs(sum1, q1, x0, x1, six1, i);
        PIN(sum0);
        PIN(sum1);
    }
    return b32_add32(b32_outer(sum0, sum1), b32_inner(sum0, sum1));
}

/* Four blocks of each row: their lanes, those of a row in each half. */
INLINE f8 add_four_of_two(f8 lanes, const uint8_t *w0, const uint8_t *w1, const blocks_x *x,
                          size_t block) {
    enum { BYTES = 144 };
    const uint8_t *more = x->row + x->at.more + 16 * block;
    const b16 halves = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    _Alignas(32) uint8_t six[4][32];
    b32 head[4], whole[4], least[4];
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; j++) {
        head[j] = two_heads(w0 + j * BYTES, w1 + j * BYTES);
        const b32 both = six_bits_two(head[j]);
        least[j] = b32_madd16(_mm256_unpackhi_epi8(both, b32_zero()), b32_twice(more + 16 * j));
        b32_store_aligned(six[j], both);
    }
    __asm__("" : "+m"(six)); /* in memory: what a half holds is loaded into both */
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; j++)
        whole[j] =
            two_blocks(w0 + j * BYTES, w1 + j * BYTES, six[j], x->row + (block + j) * BLOCK_SUPER);
    const b32 scales = _mm256_unpacklo_epi64(_mm256_unpacklo_epi32(head[0], head[1]),
                                             _mm256_unpacklo_epi32(head[2], head[3]));
    const b32 sorted =
        _mm256_permute4x64_epi64(b32_choose(scales, _mm256_broadcastsi128_si256(halves)),
                                 0xd8); /* d's, then m's */
    const f8 of_x = f8_of_four(scales_of_row(x, 0) + block);
    lanes = f8_fma(f8_of_ints(four_pairs(whole)), f8_mul(_mm256_cvtph_ps(b32_low(sorted)), of_x),
                   lanes);
    return f8_fnma(f8_of_ints(four_pairs(least)), f8_mul(_mm256_cvtph_ps(b32_high(sorted)), of_x),
                   lanes);
}

/* add_blocks() for two rows of W, whose sums are `apart` floats from each other. */
INLINE void add_two_rows(float *sums, size_t apart, const uint8_t *w0, const uint8_t *w1, size_t n,
                         const blocks_x *x, size_t first) {
    enum { BYTES = 144 };
    const size_t end = first + n, rest = (0 - first) % 4 < n ? (0 - first) % 4 : n;
    add_blocks(KIND_Q4_K, 1, sums, w0, rest, x, first);
    add_blocks(KIND_Q4_K, 1, sums + apart, w1, rest, x, first);
    first += rest, w0 += rest * BYTES, w1 += rest * BYTES;
    for (; end - first >= 4; first += 4, w0 += 4 * BYTES, w1 += 4 * BYTES) {
        float *lanes = sums + first % BLOCKS_LANES;
        const f8 sum = add_four_of_two(f8_join(lanes, lanes + apart), w0, w1, x, first);
        f4_store(lanes, f8_low(sum));
        f4_store(lanes + apart, f8_high(sum));
    }
    add_blocks(KIND_Q4_K, 1, sums, w0, end - first, x, first);
    add_blocks(KIND_Q4_K, 1, sums + apart, w1, end - first, x, first);
}
#undef PIN

/* ---- x --------------------------------------------------------------------------------------- */

/* The highest of |x| of 32 numbers as bits, of which eight are in each of four vectors. */
INLINE b32 highest_of(const float *x) {
    b32 most = b32_zero();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        most = _mm256_max_epi32(most, b32_and(b32_load(x + 8 * i), b32_all32(0x7fffffff)));
    return most;
}

INLINE uint32_t highest(b32 v) {
    b16 most = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(most);
}

/* Quantises 32 numbers, stores them and returns the sums of each four. */
INLINE b32 quantise(int8_t *q, const float *x, const blocks_scale *scale) {
    b32 whole[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        whole[i] = _mm256_cvtps_epi32(f8_mul(f8_load(x + 8 * i), f8_all(scale->per)));
    const b32 bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                         _mm256_packs_epi32(whole[2], whole[3]));
    const b32 sorted =
        b32_and(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)),
                b32_all32(scale->keep));
    b32_store_aligned(q, sorted);
    return b32_madd16(b32_madd8(b32_all8(1), sorted), b32_all16(1));
}

static TARGET CLEAR_REGISTERS void pack_runs(uint8_t *row, const blocks_layout *at, const float *x,
                                             int zero) {
    float *scales = (float *)(void *)(row + at->scale), *sums = (float *)(void *)(row + at->more);
    int32_t *less = (int32_t *)(void *)(row + at->sums);
    for (size_t i = 0; i < at->units; i++, row += BLOCKS_RUN, x += BLOCKS_RUN) {
        const blocks_scale scale = blocks_scale_of(highest(highest_of(x)));
        const int32_t sum = one_total(quantise((int8_t *)row, x, &scale));
        scales[i] = scale.scale;
        less[i] = sum * -zero;
        sums[i] = (float)sum * scale.scale;
    }
}

static TARGET CLEAR_REGISTERS void pack_supers(uint8_t *row, const blocks_layout *at,
                                               const float *x) {
    float *scales = (float *)(void *)(row + at->scale);
    int16_t *sums16 = (int16_t *)(void *)(row + at->sums);
    int16_t *sums32 = (int16_t *)(void *)(row + at->more);
    for (size_t i = 0; i < at->units; i++) {
        b32 most = b32_zero();
        for (size_t j = 0; j < BLOCK_SUPER; j += BLOCKS_RUN)
            most = _mm256_max_epi32(most, highest_of(x + j));
        const blocks_scale scale = blocks_scale_of(highest(most));
        scales[i] = scale.scale;
        for (size_t j = 0; j < 8; j++, x += BLOCKS_RUN, row += BLOCKS_RUN) {
            b32 four = quantise((int8_t *)row, x, &scale);
            four = b32_add32(four, _mm256_shuffle_epi32(four, 0x4e));
            four = b32_add32(four, _mm256_shuffle_epi32(four, 0xb1));
            const int low = _mm_cvtsi128_si32(b32_low(four));
            const int high = _mm_cvtsi128_si32(b32_high(four));
            *sums16++ = (int16_t)low;
            *sums16++ = (int16_t)high;
            *sums32++ = (int16_t)(low + high);
        }
    }
}

/* ---- the table ------------------------------------------------------------------------------- */

static TARGET CLEAR_REGISTERS void total(float *to, float *sums, size_t n) {
    for (; n; n--, sums += BLOCKS_LANES) {
        *to++ = f8_total(f8_load(sums));
        f8_store(sums, _mm256_setzero_ps());
    }
}

/* All rows of W in one call: the registers are cleared once. */
#define DOT_ROWS(add, kind, x_rows)                                                                \
    for (size_t i = 0; i < w->rows; i++, sums += w->apart)                                         \
    add(kind, x_rows, sums, w->first + i * w->bytes, w->n, x, w->number)
#define DOT(name, add, kind)                                                                       \
    static TARGET CLEAR_REGISTERS void name##_1(float *sums, const blocks_w *w,                    \
                                                const blocks_x *x) {                               \
        DOT_ROWS(add, kind, 1);                                                                    \
    }                                                                                              \
    static TARGET CLEAR_REGISTERS void name##_4(float *sums, const blocks_w *w,                    \
                                                const blocks_x *x) {                               \
        DOT_ROWS(add, kind, BLOCKS_ROWS);                                                          \
    }
DOT(q4_0, add_runs, KIND_Q4_0)
DOT(q4_1, add_runs, KIND_Q4_1)
DOT(q5_0, add_runs, KIND_Q5_0)
DOT(q5_1, add_runs, KIND_Q5_1)
DOT(q8_0, add_runs, KIND_Q8_0)
DOT(iq4_nl, add_runs, KIND_IQ4_NL)
DOT(int4, add_runs, KIND_INT4)
DOT(int4_zp, add_runs, KIND_INT4_ZP)
DOT(int8, add_runs, KIND_INT8)
DOT(int8_zp, add_runs, KIND_INT8_ZP)
DOT(q2_k, add_blocks, KIND_Q2_K)
DOT(q3_k, add_blocks, KIND_Q3_K)
DOT(q5_k, add_blocks, KIND_Q5_K)
DOT(q6_k, add_blocks, KIND_Q6_K)
DOT(iq4_xs, add_blocks, KIND_IQ4_XS)
#undef DOT

static TARGET CLEAR_REGISTERS void q4_k_1(float *sums, const blocks_w *w, const blocks_x *x) {
    size_t i = 0;
    for (; !VNNI && w->rows - i >= 2; i += 2, sums += 2 * w->apart)
        add_two_rows(sums, w->apart, w->first + i * w->bytes, w->first + (i + 1) * w->bytes, w->n,
                     x, w->number);
    for (; i < w->rows; i++, sums += w->apart)
        add_blocks(KIND_Q4_K, 1, sums, w->first + i * w->bytes, w->n, x, w->number);
}

static TARGET CLEAR_REGISTERS void q4_k_4(float *sums, const blocks_w *w, const blocks_x *x) {
    DOT_ROWS(add_blocks, KIND_Q4_K, BLOCKS_ROWS);
}
#undef DOT_ROWS

#ifdef PANEL_HEIGHT
#include "kernels/blocks_panels.h"
#endif

#define BOTH(name) {name##_1, name##_4}
const blocks_ops BLOCKS_OPS = {
    .pack_runs = pack_runs,
    .pack_supers = pack_supers,
    .dot = {[CCMEM_Q4_0] = BOTH(q4_0),           [CCMEM_Q4_1] = BOTH(q4_1),
            [CCMEM_Q5_0] = BOTH(q5_0),           [CCMEM_Q5_1] = BOTH(q5_1),
            [CCMEM_Q8_0] = BOTH(q8_0),           [CCMEM_Q2_K] = BOTH(q2_k),
            [CCMEM_Q3_K] = BOTH(q3_k),           [CCMEM_Q4_K] = BOTH(q4_k),
            [CCMEM_Q5_K] = BOTH(q5_k),           [CCMEM_Q6_K] = BOTH(q6_k),
            [CCMEM_IQ4_NL] = BOTH(iq4_nl),       [CCMEM_IQ4_XS] = BOTH(iq4_xs),
            [CCMEM_INT4_G32] = BOTH(int4),       [CCMEM_INT4_G64] = BOTH(int4),
            [CCMEM_INT4_G128] = BOTH(int4),      [CCMEM_INT4_G32_ZP] = BOTH(int4_zp),
            [CCMEM_INT4_G64_ZP] = BOTH(int4_zp), [CCMEM_INT4_G128_ZP] = BOTH(int4_zp),
            [CCMEM_INT8_G32] = BOTH(int8),       [CCMEM_INT8_G64] = BOTH(int8),
            [CCMEM_INT8_G128] = BOTH(int8),      [CCMEM_INT8_G32_ZP] = BOTH(int8_zp),
            [CCMEM_INT8_G64_ZP] = BOTH(int8_zp), [CCMEM_INT8_G128_ZP] = BOTH(int8_zp)},
    .total = total,
#ifdef PANEL_HEIGHT
    .panels = &panels,
#endif
};
#undef BOTH
