/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantised blocks times many rows of x, of every SIMD tier: part of kernels/blocks_template.h. As
 * in BLIS a block of W's rows times a panel of x stays in registers; rows of x are the lanes of a
 * vector, and four elements of W are one word of all lanes. So what blocks are multiplied with is
 * multiplied once for all rows of a vector, and nothing is added across lanes. A tier file defines
 * PANEL_HEIGHT, the rows of W in a block, PANEL_PACK, and the words of simd/v256.h or v512.h and
 * these:
 *
 *   SPREAD32(p)                  the word at p in each lane
 *   MUL32 SUB32(a, b) SHL32(v, n)  32-bit lanes
 *   FNMA(a, b, c)                c - a * b, rounded once
 *   DOT8 DOT16                   with VNNI: as b32_dot8 and b32_dot16
 *   MADD8 SIZE8 SIGN8            without: as b32_madd8, b32_size8, b32_sign8
 *   ADD16(a, b)
 *
 * Without VNNI pairs of products without a sign are added in 16 bits, as many as these hold. */

enum {
    WIDTH = 2 * F_LANES,
    HEIGHT = PANEL_HEIGHT,
    PART = HEIGHT / 2 /* rows whose sums of groups and of blocks fit into the registers */
};

/* A run of W taken apart, and a block of 256. */
typedef struct apart_run {
    uint8_t q[BLOCKS_RUN];
    float d, m;
} apart_run;

typedef struct apart_super {
    uint8_t q[BLOCK_SUPER];
    int32_t step[16];  /* of each group */
    int16_t least[16]; /* what is multiplied with the sums of x's groups */
    float d, m;
} apart_super;

static size_t unpacked(ccmem_block_format format) {
    return blocks_super(format) ? sizeof(apart_super)
                                : sizeof(apart_run) * (block_formats[format].elements / BLOCKS_RUN);
}

/* ---- W --------------------------------------------------------------------------------------- */

INLINE int small_groups(kind k) { return k == KIND_Q2_K || k == KIND_Q3_K || k == KIND_Q6_K; }

/* 1: sums of products are of 16 bits until they are multiplied by their group's scale. */
INLINE int halves(kind k) { return !VNNI && !has_sign(k); }

/* The words of a run or of a group whose products' sum fits into 16 bits, or all of them. */
INLINE size_t words_at_once(kind k) {
    const size_t all = small_groups(k) ? 4 : 8;
    if (!halves(k))
        return all;
    switch (k) {
    case KIND_Q5_0:
    case KIND_Q5_1:
    case KIND_Q5_K: return 4; /* 2 * 4 * 31 * 127 */
    case KIND_Q6_K: return 2; /* 2 * 2 * 63 * 127 */
    default: return all;      /* 2 * 8 * 15 * 127 */
    }
}

INLINE void unpack_runs(kind k, uint8_t *to, const uint8_t *w, size_t n, size_t each) {
    apart_run *out = (apart_run *)(void *)to;
    const size_t runs = is_group(k) ? each : 1;
    for (size_t i = 0; i < n * runs; i++, out++) {
        const uint8_t *head = head_of(k, w, runs, i);
        _mm256_storeu_si256((b32 *)(void *)out->q, prepared_run(k, head, runs, i));
        out->d = scale_of(k, head);
        out->m = has_offset(k) ? offset_of(k, head) : 0;
    }
}

INLINE void unpack_supers(kind k, uint8_t *to, const uint8_t *w, size_t n, size_t each) {
    apart_super *out = (apart_super *)(void *)to;
    (void)each;
    for (; n; n--, out++, w += super_bytes(k)) {
        const scales s = scales_of(k, w);
        _Alignas(32) int16_t step[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const b32 q = super_run(k, w, i);
            _mm256_storeu_si256((b32 *)(void *)(out->q + BLOCKS_RUN * i),
                                VNNI && has_sign(k) ? b32_xor(q, b32_all8(-128)) : q);
        }
        b32_store_aligned(step, s.steps);
        for (int i = 0; i < (small_groups(k) ? 16 : 8); i++) {
            const int16_t one = small_groups(k) ? step[i / 2 + i % 2 * 8] : step[i];
            out->step[i] = halves(k) ? (int32_t)((uint16_t)one * 0x10001u) : one;
        }
        if (small_groups(k))
            _mm256_storeu_si256((b32 *)(void *)out->least, s.least);
        else if (k == KIND_IQ4_XS)
            _mm_storeu_si128((b16 *)(void *)out->least, b32_low(s.steps));
        else
            _mm_storeu_si128((b16 *)(void *)out->least,
                             _mm_packs_epi32(b32_low(s.least), b32_high(s.least)));
        out->d = half_at(w + place_of_d(k));
        out->m = has_least(k) ? half_at(w + place_of_d(k) + 2) : 0;
    }
}

/* ---- products -------------------------------------------------------------------------------- */

/* Adds the products of a word of W with one of x. */
INLINE VEC add_word(kind k, VEC sum, VEC w, VEC x) {
#ifdef DOT8
    (void)k;
    return DOT8(sum, w, x);
#else
    if (has_sign(k))
        return vadd32(sum, vmadd16(MADD8(SIZE8(w), SIGN8(x, w)), vall32(0x10001)));
    return ADD16(sum, MADD8(w, x));
#endif
}

/* c + the products of pairs of 16 bits. */
INLINE VEC add_pairs(VEC c, VEC a, VEC b) {
#ifdef DOT16
    return DOT16(c, a, b);
#else
    return vadd32(c, vmadd16(a, b));
#endif
}

INLINE const int32_t *words_of(const uint8_t *p) { return (const int32_t *)(const void *)p; }

/* The sums of `n` words of each row of W, `bytes` apart, with each vector of x. */
INLINE void add_words(kind k, size_t rows, int vectors, VEC sum[HEIGHT][2], const uint8_t *w,
                      size_t ldw, const int32_t *x, size_t n) {
#pragma GCC unroll 14
    for (size_t i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[i][v] = vall32(0);
    for (; n; n--, w += 4, x += WIDTH) {
        VEC column[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            column[v] = vload(x + v * F_LANES);
#pragma GCC unroll 14
        for (size_t i = 0; i < rows; i++) {
            const VEC u = SPREAD32(w + i * ldw);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                sum[i][v] = add_word(k, sum[i][v], u, column[v]);
                vpin(sum[i][v]);
            }
        }
    }
}

INLINE void clear_lanes(const blocks_panel *p) {
    for (size_t i = 0; i < (size_t)BLOCKS_LANES * HEIGHT * WIDTH; i += F_LANES)
        fstore_aligned(p->lanes + i, fzero());
}

/* The sums of lanes, halves on halves. */
INLINE void end_lanes(int vectors, const blocks_panel *p) {
    enum { LANE = HEIGHT * WIDTH };
    for (size_t i = 0; i < HEIGHT; i++)
        for (int v = 0; v < vectors; v++) {
            const float *at = p->lanes + i * WIDTH + v * F_LANES;
            fvec sum[BLOCKS_LANES / 2];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                sum[j] = fadd(fload_aligned(at + j * LANE), fload_aligned(at + (j + 4) * LANE));
            fstore(p->sums + i * WIDTH + v * F_LANES,
                   fadd(fadd(sum[0], sum[2]), fadd(sum[1], sum[3])));
        }
}

INLINE float *lane_of(const blocks_panel *p, size_t unit) {
    return p->lanes + unit % BLOCKS_LANES * HEIGHT * WIDTH;
}

INLINE void panel_runs(kind k, int vectors, const blocks_panel *p) {
    int32_t *total = (int32_t *)(void *)lane_of(p, 0) + (size_t)BLOCKS_LANES * HEIGHT * WIDTH;
    const size_t words = words_at_once(k);
    clear_lanes(p);
    for (size_t run = 0; run < p->at.units; run++) {
        const int32_t *x = p->x + run * (BLOCKS_RUN / 4) * WIDTH;
        const float *scale = (const float *)p->x + (p->at.scale + run) * WIDTH;
        const int32_t *less = p->x + (p->at.sums + run) * WIDTH;
        const float *more = (const float *)p->x + (p->at.more + run) * WIDTH;
        const uint8_t *w = p->w + run * sizeof(apart_run);
        float *lane = lane_of(p, run);
        VEC sum[HEIGHT][2];
        add_words(k, HEIGHT, vectors, sum, w, p->ldw, x, words);
        if (words < BLOCKS_RUN / 4) {
#pragma GCC unroll 14
            for (size_t i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
                for (int v = 0; v < vectors; v++)
                    vstore(total + i * WIDTH + v * F_LANES, vmadd16(sum[i][v], vall32(0x10001)));
            add_words(k, HEIGHT, vectors, sum, w + 4 * words, p->ldw, x + words * WIDTH, words);
        }
#pragma GCC unroll 14
        for (size_t i = 0; i < HEIGHT; i++) {
            const apart_run *head = (const apart_run *)(const void *)(w + i * p->ldw);
            const fvec d = fspread(&head->d);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                float *to = lane + i * WIDTH + v * F_LANES;
                VEC whole = halves(k) ? vmadd16(sum[i][v], vall32(0x10001)) : sum[i][v];
                if (words < BLOCKS_RUN / 4)
                    whole = vadd32(whole, vload(total + i * WIDTH + v * F_LANES));
                if (has_less(k))
                    whole = vadd32(whole, vload(less + v * F_LANES));
                fvec y = ffma(fints(whole), fmul(d, fload_aligned(scale + v * F_LANES)),
                              fload_aligned(to));
                if (has_offset(k))
                    y = ffma(fload_aligned(more + v * F_LANES), fspread(&head->m), y);
                fstore_aligned(to, y);
            }
        }
    }
    end_lanes(vectors, p);
}

/* The products of `least` of a row of W with the sums of a vector of x. */
INLINE VEC least_of(kind k, const blocks_panel *p, const apart_super *w, size_t block, int v) {
    const int32_t *x = small_groups(k) ? p->x + (p->at.sums + 8 * block) * WIDTH
                                       : p->x + (p->at.more + 4 * block) * WIDTH;
    const size_t words = small_groups(k) ? 8 : 4;
    VEC sum = vall32(0);
#pragma GCC unroll 8
    for (size_t j = 0; j < words; j++)
        sum = add_pairs(sum, SPREAD32((const uint8_t *)&w->least[2 * j]),
                        vload(x + j * WIDTH + v * F_LANES));
    return sum;
}

/* A block of `rows` rows of W from w on times a block of x. */
INLINE void add_part(kind k, int vectors, const blocks_panel *p, const uint8_t *w, size_t block,
                     float *lane) {
    const int32_t *x = p->x + block * (BLOCK_SUPER / 4) * WIDTH;
    const float *scale = (const float *)p->x + (p->at.scale + block) * WIDTH;
    const size_t words = words_at_once(k), each = small_groups(k) ? 4 : 8;
    /* What q has too much, as a number of bits. */
    const int zero = VNNI && has_sign(k) ? 7 : zero_bits(k);
    VEC total[PART][2];
#pragma GCC unroll 8
    for (size_t i = 0; i < PART; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            total[i][v] = vall32(0);
    for (size_t j = 0; j < BLOCK_SUPER / 4; j += words) {
        const uint8_t *step = w + offsetof(apart_super, step) + j / each * 4;
        VEC sum[HEIGHT][2];
        add_words(k, PART, vectors, sum, w + 4 * j, p->ldw, x + j * WIDTH, words);
#pragma GCC unroll 8
        for (size_t i = 0; i < PART; i++) {
            const VEC by = SPREAD32(step + i * p->ldw);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                total[i][v] =
                    vadd32(total[i][v], halves(k) ? vmadd16(sum[i][v], by) : MUL32(sum[i][v], by));
                vpin(total[i][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < PART; i++) {
        const apart_super *head = (const apart_super *)(const void *)(w + i * p->ldw);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            float *to = lane + i * WIDTH + v * F_LANES;
            const fvec s = fload_aligned(scale + v * F_LANES);
            VEC whole = total[i][v];
            if (zero)
                whole = SUB32(whole, SHL32(least_of(k, p, head, block, v), zero));
            fvec y = ffma(fints(whole), fmul(fspread(&head->d), s), fload_aligned(to));
            if (has_least(k))
                y = FNMA(fints(least_of(k, p, head, block, v)), fmul(fspread(&head->m), s), y);
            fstore_aligned(to, y);
        }
    }
}

INLINE void panel_supers(kind k, int vectors, const blocks_panel *p) {
    clear_lanes(p);
    for (size_t block = 0; block < p->at.units; block++)
        for (size_t i = 0; i < HEIGHT; i += PART)
            add_part(k, vectors, p, p->w + i * p->ldw + block * sizeof(apart_super), block,
                     lane_of(p, block) + i * WIDTH);
    end_lanes(vectors, p);
}

/* ---- the table ------------------------------------------------------------------------------- */

#define PANELS(name, of, kind)                                                                     \
    static TARGET CLEAR_REGISTERS void name##_apart(uint8_t *to, const uint8_t *w, size_t n,       \
                                                    size_t runs) {                                 \
        unpack_##of(kind, to, w, n, runs);                                                         \
    }                                                                                              \
    static TARGET CLEAR_REGISTERS void name##_half(const blocks_panel *p) {                        \
        panel_##of(kind, 1, p);                                                                    \
    }                                                                                              \
    static TARGET CLEAR_REGISTERS void name##_panel(const blocks_panel *p) {                       \
        panel_##of(kind, 2, p);                                                                    \
    }
PANELS(q4_0, runs, KIND_Q4_0)
PANELS(q4_1, runs, KIND_Q4_1)
PANELS(q5_0, runs, KIND_Q5_0)
PANELS(q5_1, runs, KIND_Q5_1)
PANELS(q8_0, runs, KIND_Q8_0)
PANELS(iq4_nl, runs, KIND_IQ4_NL)
PANELS(int4, runs, KIND_INT4)
PANELS(int4_zp, runs, KIND_INT4_ZP)
PANELS(int8, runs, KIND_INT8)
PANELS(int8_zp, runs, KIND_INT8_ZP)
PANELS(q2_k, supers, KIND_Q2_K)
PANELS(q3_k, supers, KIND_Q3_K)
PANELS(q4_k, supers, KIND_Q4_K)
PANELS(q5_k, supers, KIND_Q5_K)
PANELS(q6_k, supers, KIND_Q6_K)
PANELS(iq4_xs, supers, KIND_IQ4_XS)
#undef PANELS

#define ALL(X)                                                                                     \
    X(CCMEM_Q4_0, q4_0)                                                                            \
    X(CCMEM_Q4_1, q4_1)                                                                            \
    X(CCMEM_Q5_0, q5_0)                                                                            \
    X(CCMEM_Q5_1, q5_1)                                                                            \
    X(CCMEM_Q8_0, q8_0)                                                                            \
    X(CCMEM_Q2_K, q2_k)                                                                            \
    X(CCMEM_Q3_K, q3_k)                                                                            \
    X(CCMEM_Q4_K, q4_k)                                                                            \
    X(CCMEM_Q5_K, q5_k)                                                                            \
    X(CCMEM_Q6_K, q6_k)                                                                            \
    X(CCMEM_IQ4_NL, iq4_nl)                                                                        \
    X(CCMEM_IQ4_XS, iq4_xs)                                                                        \
    X(CCMEM_INT4_G32, int4)                                                                        \
    X(CCMEM_INT4_G64, int4)                                                                        \
    X(CCMEM_INT4_G128, int4)                                                                       \
    X(CCMEM_INT4_G32_ZP, int4_zp)                                                                  \
    X(CCMEM_INT4_G64_ZP, int4_zp)                                                                  \
    X(CCMEM_INT4_G128_ZP, int4_zp)                                                                 \
    X(CCMEM_INT8_G32, int8)                                                                        \
    X(CCMEM_INT8_G64, int8)                                                                        \
    X(CCMEM_INT8_G128, int8)                                                                       \
    X(CCMEM_INT8_G32_ZP, int8_zp)                                                                  \
    X(CCMEM_INT8_G64_ZP, int8_zp)                                                                  \
    X(CCMEM_INT8_G128_ZP, int8_zp)
#define APART(format, name) [format] = name##_apart,
#define MULTIPLY(format, name) [format] = {name##_half, name##_panel},
static const blocks_panels panels = {.lanes = F_LANES,
                                     .width = WIDTH,
                                     .height = HEIGHT,
                                     .unpacked = unpacked,
                                     .unpack = {ALL(APART)},
                                     .pack = PANEL_PACK,
                                     .multiply = {ALL(MULTIPLY)}};
#undef APART
#undef MULTIPLY
#undef ALL
