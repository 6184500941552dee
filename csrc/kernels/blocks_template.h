/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of block-quantised rows on vectors of 32 bytes. A tier file defines TARGET, B32_VNNI
 * where it has it, includes simd/b32.h and simd/f8.h, defines BLOCKS_OPS, the name of the table,
 * then includes this file once.
 *
 * A run of 32 elements is one vector: its products with x, those of four elements added, are exact
 * 32-bit numbers, one for each of eight lanes. Runs with even numbers have the sums 0 to 7 of a
 * row, the others 8 to 15: two chains, which hide the latency of the multiply-adds.
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

/* The float16, or float32, at p in each lane. */
INLINE f8 spread_half(const uint8_t *p) {
    int16_t half;
    memcpy(&half, p, sizeof half);
    return _mm256_cvtph_ps(_mm_set1_epi16(half));
}

INLINE f8 spread_float(const uint8_t *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return _mm256_set1_ps(f);
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
           (VNNI && (k == KIND_Q8_0 || k == KIND_IQ4_NL || k == KIND_INT8));
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

INLINE f8 scale_of(kind k, const uint8_t *head) {
    switch (k) {
    case KIND_INT4:
    case KIND_INT4_ZP:
    case KIND_INT8:
    case KIND_INT8_ZP: return spread_float(head + GROUP_SCALE);
    default: return spread_half(head);
    }
}

INLINE f8 offset_of(kind k, const uint8_t *head) {
    switch (k) {
    case KIND_Q4_1: return spread_half(head + Q4_1_M);
    case KIND_Q5_1: return spread_half(head + Q5_1_M);
    default: return spread_float(head + GROUP_OFFSET);
    }
}

/* ---- blocks of 32 elements, and groups ------------------------------------------------------- */

/* The products of a run of W, prepared as below, with one of x. */
INLINE b32 run_products(kind k, b32 q, b32 size, const blocks_run *x) {
    const b32 xq = b32_load_aligned(x->q);
    const b32 less = has_less(k) ? b32_load_aligned(x->less) : b32_zero();
    if (has_sign(k) && !has_less(k))
        return b32_dot8(less, size, b32_sign8(xq, q));
    return b32_dot8(less, q, xq);
}

/* Adds the products of a run of W with one of each row of x; scale[r] is that of both, in every
 * lane.
 */
INLINE void add_products(kind k, int rows, f8 *sums, size_t odd, b32 q, const f8 *scale, f8 offset,
                         const blocks_x *x, size_t run) {
    b32 v = q, size = q;
    if (has_sign(k) && has_less(k))
        v = b32_xor(v, b32_all8(-128));
    else if (has_sign(k))
        size = b32_size8(v);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const blocks_run *xr = (const blocks_run *)(const void *)(x->q + r * x->stride) + run;
        f8 *sum = &sums[2 * r + odd];
        *sum = f8_fma(f8_of_ints(run_products(k, v, size, xr)), scale[r], *sum);
        if (has_offset(k))
            *sum = f8_fma(f8_load(xr->sums), offset, *sum);
    }
}

INLINE const float *scales_of_row(const blocks_x *x, int r) {
    return (const float *)(const void *)((const uint8_t *)x->scale + r * x->stride);
}

INLINE void add_run(kind k, int rows, f8 *sums, size_t odd, const uint8_t *head, const uint8_t *q,
                    const blocks_x *x, size_t run) {
    const f8 d = scale_of(k, head), offset = has_offset(k) ? offset_of(k, head) : d;
    f8 scale[BLOCKS_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        scale[r] = f8_mul(d, f8_all(scales_of_row(x, r)[run]));
    add_products(k, rows, sums, odd, run_of(k, head, q), scale, offset, x, run);
}

/* The float16 at p and in the same place of three more blocks, as floats, in both halves. */
INLINE f8 four_halves(const uint8_t *p, size_t bytes) {
    uint16_t half[4];
    for (size_t i = 0; i < 4; i++)
        memcpy(&half[i], p + i * bytes, sizeof half[i]);
    b16 v = _mm_cvtsi32_si128(half[0]);
    v = _mm_insert_epi16(v, half[1], 1);
    v = _mm_insert_epi16(v, half[2], 2);
    v = _mm_insert_epi16(v, half[3], 3);
    const f4 four = _mm_cvtph_ps(v);
    return _mm256_set_m128(four, four);
}

INLINE f8 spread(f8 four, size_t i) {
    switch (i) {
    case 0: return f8_spread(four, 0);
    case 1: return f8_spread(four, 1);
    case 2: return f8_spread(four, 2);
    default: return f8_spread(four, 3);
    }
}

/* Four blocks of a run each. Their scales are converted and multiplied together, since loads and
 * conversions bound the loop: a tenth of the time (Zen 4). */
INLINE void add_four(kind k, int rows, f8 *sums, const uint8_t *w, const blocks_x *x, size_t run) {
    const size_t bytes = head_bytes(k) + run_bytes(k);
    const f8 d = four_halves(w, bytes), m = has_offset(k) ? four_halves(w + 2, bytes) : d;
    f8 scales[BLOCKS_ROWS], scale[BLOCKS_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        scales[r] = f8_mul(d, f8_of_four(scales_of_row(x, r) + run));
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        const uint8_t *head = w + i * bytes;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            scale[r] = spread(scales[r], i);
        add_products(k, rows, sums, i % 2, run_of(k, head, head + head_bytes(k)), scale,
                     spread(m, i), x, run + i);
    }
}

/* Runs are taken by twos, whichever block they are in. */
INLINE void add_runs(kind k, int rows, float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                     size_t first) {
    const int groups = k >= KIND_INT4;
    const size_t runs = groups ? block_formats[x->format].elements / BLOCKS_RUN : 1;
    size_t run = first * runs, end = run + n * runs;
    const uint8_t *head = w, *q = w + head_bytes(k);
    size_t left = runs;
    f8 sum[2 * BLOCKS_ROWS];
    /* The first run's are in sum[0], whichever lanes they are. */
    float *even = sums + run % 2 * 8, *odd = sums + (run + 1) % 2 * 8;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        sum[2 * r] = f8_load(even + r * BLOCKS_LANES);
        sum[2 * r + 1] = f8_load(odd + r * BLOCKS_LANES);
    }
#define NEXT_RUN                                                                                   \
    q += run_bytes(k);                                                                             \
    if (!groups || !--left)                                                                        \
    head = q, q += head_bytes(k), left = runs
    for (; !groups && run + 4 <= end; run += 4, head += 4 * (head_bytes(k) + run_bytes(k)))
        add_four(k, rows, sum, head, x, run);
    if (!groups)
        q = head + head_bytes(k);
    for (; run + 2 <= end; run += 2) {
        add_run(k, rows, sum, 0, head, q, x, run);
        NEXT_RUN;
        add_run(k, rows, sum, 1, head, q, x, run + 1);
        NEXT_RUN;
    }
    if (run < end)
        add_run(k, rows, sum, 0, head, q, x, run);
#undef NEXT_RUN
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        f8_store(even + r * BLOCKS_LANES, sum[2 * r]);
        f8_store(odd + r * BLOCKS_LANES, sum[2 * r + 1]);
    }
}

/* ---- blocks of 256 elements ------------------------------------------------------------------ */

/* What a block's 8 runs are multiplied with: 16-bit number s of each half for that half of run s;
 * what is taken away; and d, m. */
typedef struct scales {
    b32 steps; /* the scales of groups of q's, in each half number s is of run s */
    b32 least; /* the offsets of groups, as x's sums ask for them */
    f8 d, m;
} scales;

/* 8 bytes as 16-bit numbers, in both halves. */
INLINE b32 same_halves(uint64_t bytes) {
    return _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128((int64_t)bytes)));
}

/* 16 bytes as 16-bit numbers: those with even numbers, then the others. */
INLINE b32 sorted_halves(b16 bytes) {
    return b32_widen8(_mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7,
                                                            9, 11, 13, 15)));
}

/* Q4_K's and Q5_K's scales and offsets: quant/unpack.c says how they lie. */
INLINE void six_bits(const uint8_t *p, scales *out) {
    const uint32_t a = word32(p), b = word32(p + 4), c = word32(p + 8);
    const uint32_t low = a & 0x3f3f3f3f, high = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    const uint32_t least = b & 0x3f3f3f3f, most = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    out->steps = same_halves(low | (uint64_t)high << 32);
    out->least = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)(least | (uint64_t)most << 32)));
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
    case KIND_Q5_K:
        six_bits(w + Q4_K_SCALES, &s);
        s.d = spread_half(w + Q4_K_D);
        s.m = spread_half(w + Q4_K_M);
        break;
    case KIND_Q2_K:
        bytes = _mm_loadu_si128((const b16 *)(const void *)(w + Q2_K_SCALES));
        s.steps = sorted_halves(_mm_and_si128(bytes, _mm_set1_epi8(15)));
        s.least = b32_widen_u8(_mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)));
        s.d = spread_half(w + Q2_K_D);
        s.m = spread_half(w + Q2_K_M);
        break;
    case KIND_Q3_K:
        bytes = six_bits_signed(w + Q3_K_SCALES);
        s.steps = sorted_halves(bytes);
        s.least = b32_widen8(bytes);
        s.d = spread_half(w + Q3_K_D);
        break;
    case KIND_Q6_K:
        bytes = _mm_loadu_si128((const b16 *)(const void *)(w + Q6_K_SCALES));
        s.steps = sorted_halves(bytes);
        s.least = b32_widen8(bytes);
        s.d = spread_half(w + Q6_K_D);
        break;
    default: s.steps = iq4_steps(w); s.d = spread_half(w + IQ4_XS_D);
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

INLINE b32 least_products(kind k, b32 least, const blocks_super *x) {
    return b32_madd16(least,
                      b32_load_aligned(k == KIND_Q4_K || k == KIND_Q5_K ? (const void *)x->sums32
                                                                        : (const void *)x->sums16));
}

/* c + the products of a run of W with one of x, times the run's scales. */
INLINE b32 super_products(kind k, b32 c, b32 q, b32 size, b32 step, const int8_t *x) {
    b32 xq = b32_load_aligned(x);
    if (has_sign(k))
        xq = b32_sign8(xq, q);
    return b32_dot16(c, b32_madd8(size, xq), step);
}

INLINE const blocks_super *super_of(const blocks_x *x, int r, size_t block) {
    return (const blocks_super *)(const void *)(x->q + r * x->stride) + block;
}

INLINE void add_block(kind k, int rows, f8 *sums, const uint8_t *w, const blocks_x *x,
                      size_t block) {
    const scales s = scales_of(k, w);
    b32 even[BLOCKS_ROWS], odd[BLOCKS_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        even[r] = odd[r] = b32_zero();
        if (zero_bits(k))
            even[r] =
                b32_sub32(b32_zero(), b32_shl32(least_products(k, s.least, super_of(x, r, block)),
                                                zero_bits(k)));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const b32 q = super_run(k, w, i), size = has_sign(k) ? b32_size8(q) : q;
        const b32 step = b32_choose(s.steps, b32_all16(0x0100 + 0x0202 * i));
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            b32 *sum = i % 2 ? &odd[r] : &even[r];
            *sum = super_products(k, *sum, q, size, step, super_of(x, r, block)->q + 32 * i);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const f8 scale = f8_all(scales_of_row(x, r)[block]), d = f8_mul(s.d, scale);
        sums[2 * r] = f8_fma(f8_of_ints(even[r]), d, sums[2 * r]);
        sums[2 * r + 1] = f8_fma(f8_of_ints(odd[r]), d, sums[2 * r + 1]);
        if (has_least(k))
            sums[2 * r] = f8_fnma(f8_of_ints(least_products(k, s.least, super_of(x, r, block))),
                                  f8_mul(s.m, scale), sums[2 * r]);
    }
}

INLINE void add_blocks(kind k, int rows, float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                       size_t first) {
    f8 sum[2 * BLOCKS_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < 2 * rows; i++)
        sum[i] = f8_load(sums + 8 * i);
    for (size_t i = 0; i < n; i++, w += super_bytes(k))
        add_block(k, rows, sum, w, x, first + i);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * rows; i++)
        f8_store(sums + 8 * i, sum[i]);
}

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

static TARGET CLEAR_REGISTERS void pack_runs(blocks_run *to, float *scales, const float *x,
                                             size_t n, int zero, int sums) {
    for (size_t i = 0; i < n; i++, to++, x += BLOCKS_RUN) {
        const blocks_scale scale = blocks_scale_of(highest(highest_of(x)));
        const b32 four = quantise(to->q, x, &scale);
        scales[i] = scale.scale;
        if (sums)
            f8_store(to->sums, f8_mul(f8_of_ints(four), f8_all(scale.scale)));
        else
            b32_store_aligned(to->less, b32_mul32(four, b32_all32(-zero)));
    }
}

static TARGET CLEAR_REGISTERS void pack_supers(blocks_super *to, float *scales, const float *x,
                                               size_t n) {
    for (size_t i = 0; i < n; i++, to++) {
        b32 most = b32_zero();
        for (size_t j = 0; j < BLOCK_SUPER; j += BLOCKS_RUN)
            most = _mm256_max_epi32(most, highest_of(x + j));
        const blocks_scale scale = blocks_scale_of(highest(most));
        scales[i] = scale.scale;
        for (size_t j = 0; j < 8; j++, x += BLOCKS_RUN) {
            b32 four = quantise(to->q + j * BLOCKS_RUN, x, &scale);
            four = b32_add32(four, _mm256_shuffle_epi32(four, 0x4e));
            four = b32_add32(four, _mm256_shuffle_epi32(four, 0xb1));
            const int low = _mm_cvtsi128_si32(_mm256_castsi256_si128(four));
            const int high = _mm_cvtsi128_si32(_mm256_extracti128_si256(four, 1));
            to->sums16[2 * j] = (int16_t)low;
            to->sums16[2 * j + 1] = (int16_t)high;
            to->sums32[j] = low + high;
        }
    }
}

/* ---- the table ------------------------------------------------------------------------------- */

static TARGET CLEAR_REGISTERS float total(float *sums) {
    const float sum = f8_total(f8_add(f8_load(sums), f8_load(sums + 8)));
    f8_store(sums, _mm256_setzero_ps());
    f8_store(sums + 8, _mm256_setzero_ps());
    return sum;
}

#define DOT(name, add, kind)                                                                       \
    static TARGET CLEAR_REGISTERS void name##_1(float *sums, const uint8_t *w, size_t n,           \
                                                const blocks_x *x, size_t first) {                 \
        add(kind, 1, sums, w, n, x, first);                                                        \
    }                                                                                              \
    static TARGET CLEAR_REGISTERS void name##_4(float *sums, const uint8_t *w, size_t n,           \
                                                const blocks_x *x, size_t first) {                 \
        add(kind, BLOCKS_ROWS, sums, w, n, x, first);                                              \
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
DOT(q4_k, add_blocks, KIND_Q4_K)
DOT(q5_k, add_blocks, KIND_Q5_K)
DOT(q6_k, add_blocks, KIND_Q6_K)
DOT(iq4_xs, add_blocks, KIND_IQ4_XS)
#undef DOT

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
    .total = total};
#undef BOTH
