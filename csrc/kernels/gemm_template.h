/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm kernels of every SIMD tier. A tier file defines TARGET, includes the vector words of its
 * width (simd/target.h) and simd/f8.h, defines what follows, then includes this file once. A word
 * of W or x is a lane of fvec: one float32, or two bfloat16.
 *
 *   HEIGHT, DOT_ROWS, UNIT   of the table
 *   HEIGHT_1                 height of a panel of one vector; both are multiples of 3
 *   CONVERT                  its conversions
 *   MULTIPLY_ADD(a, b, c)    a * b + c, for each word
 *   GEMM_OPS                 the name of the table to define
 *
 * Two ways to sum. Few rows of x: along k, a block of 4 rows of W times DOT_ROWS rows of x, whose
 * sums are added up across their lanes at the end. More: a block of HEIGHT rows of W times a panel
 * of x, in which the words of 2 * F_LANES rows with the same k lie side by side, so that a sum has
 * a lane and W's words are spread. The blocks are as large as the registers allow: each load must
 * serve several multiply-adds.
 */

enum {
    WIDTH = 2 * F_LANES,
    LINE = 64,
    AHEAD_WORDS = 64 / F_LANES /* in which a block takes the time that a line of x lasts */
};

/* Fewer than 8 sums. Their own function, since masked stores are slow. */
static TARGET CLEAR_REGISTERS __attribute__((noinline)) void
put_some(const float sums[8], const gemm_epilogue *end, size_t r, size_t at, size_t n) {
    const f8_mask mask = f8_lanes_below(n);
    f8 sum = f8_load_some(sums, mask);
    const size_t to = r * end->ldy + at;
    if (end->add)
        sum = f8_add(f8_load_some((float *)end->y + to, mask), sum);
    if (end->scale)
        sum = f8_mul(sum, f8_load_some(end->scale + at, mask));
    if (end->bias)
        sum = f8_add(sum, f8_load_some(end->bias + at, mask));
    if (end->halves) {
        uint16_t half[8];
        f8_store_bfloats(half, sum);
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)end->y)[to + i] = half[i];
    } else {
        f8_store_some((float *)end->y + to, mask, sum);
    }
}

/* The sums of row r of x and eight rows of W from number `at` on. */
INLINE void put_8(f8 sum, const gemm_epilogue *end, size_t r, size_t at) {
    const size_t to = r * end->ldy + at;
    if (end->add)
        sum = f8_add(f8_load((float *)end->y + to), sum);
    if (end->scale)
        sum = f8_mul(sum, f8_load(end->scale + at));
    if (end->bias)
        sum = f8_add(sum, f8_load(end->bias + at));
    if (end->halves)
        f8_store_bfloats((uint16_t *)end->y + to, sum);
    else
        f8_store((float *)end->y + to, sum);
}

/* Of four. */
INLINE void put_4(f4 sum, const gemm_epilogue *end, size_t r, size_t at) {
    const size_t to = r * end->ldy + at;
    if (end->add)
        sum = f4_add(f4_load((float *)end->y + to), sum);
    if (end->scale)
        sum = f4_mul(sum, f4_load(end->scale + at));
    if (end->bias)
        sum = f4_add(sum, f4_load(end->bias + at));
    if (end->halves)
        f4_store_bfloats((uint16_t *)end->y + to, sum);
    else
        f4_store((float *)end->y + to, sum);
}

/* The sums of four vectors' lanes. */
INLINE f4 totals(const fvec v[4]) {
    f8 a = ffold8(v[0]), b = ffold8(v[1]), c = ffold8(v[2]), d = ffold8(v[3]);
    a = f8_add(f8_unpack_low(a, b), f8_unpack_high(a, b));
    c = f8_add(f8_unpack_low(c, d), f8_unpack_high(c, d));
    a = f8_add(f8_pairs_low(a, c), f8_pairs_high(a, c));
    return f4_add(f8_low(a), f8_high(a));
}

INLINE void dot(size_t rows, const float *w, size_t ldw, size_t h, const uint8_t *x, size_t ldx,
                size_t vectors, float *kept, int more, const gemm_epilogue *end) {
    const float *row[GEMM_DOT_HEIGHT];
    fvec sum[DOT_ROWS][GEMM_DOT_HEIGHT];
#pragma GCC unroll 4
    for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++)
        row[i] = w + (i < h ? i : 0) * ldw;
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++)
            sum[r][i] = more ? fload(kept + (r * GEMM_DOT_HEIGHT + i) * F_LANES) : fzero();
    for (size_t at = 0; at < vectors * F_LANES; at += F_LANES) {
        fvec v[DOT_ROWS];
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++)
            v[r] = fload((const float *)(const void *)x + r * ldx + at);
#pragma GCC unroll 4
        for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++) {
            fvec u = fload(row[i] + at);
            fpin(u); /* else GCC loads it again for a second use, and loads become the limit */
#pragma GCC unroll 6
            for (size_t r = 0; r < rows; r++)
                sum[r][i] = MULTIPLY_ADD(u, v[r], sum[r][i]);
        }
    }
    if (!end) {
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++)
                fstore(kept + (r * GEMM_DOT_HEIGHT + i) * F_LANES, sum[r][i]);
        return;
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
        const f4 four = totals(sum[r]);
        if (h == GEMM_DOT_HEIGHT) {
            put_4(four, end, r, 0);
        } else {
            float some[8];
            f4_store(some, four);
            put_some(some, end, r, 0, h);
            ccmem_wipe(some, sizeof some);
        }
    }
}

#define DOT(rows)                                                                                  \
    static TARGET CLEAR_REGISTERS void dot_##rows(const float *w, size_t ldw, size_t h,            \
                                                  const uint8_t *x, size_t ldx, size_t vectors,    \
                                                  float *kept, int more,                           \
                                                  const gemm_epilogue *end) {                      \
        dot(rows, w, ldw, h, x, ldx, vectors, kept, more, end);                                    \
    }
DOT(1)
DOT(2)
DOT(3)
#if DOT_ROWS > 3
DOT(4)
DOT(5)
DOT(6)
#endif
#undef DOT

enum { HEIGHT_MAX = HEIGHT > HEIGHT_1 ? HEIGHT : HEIGHT_1 };

/* What word k of a panel and of `height` rows of W add to the sums. */
INLINE void add_word(fvec sum[HEIGHT_MAX][2], int vectors, int height, const float *const *w,
                     size_t ldw, const float *x) {
    fvec column[2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
        column[v] = fload(x + v * F_LANES);
#pragma GCC unroll 14
    for (int i = 0; i < height; i++) {
        fvec u = fspread(w[i / 3] + (size_t)(i % 3) * ldw);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[i][v] = MULTIPLY_ADD(u, column[v], sum[i][v]);
    }
}

INLINE void panel(int vectors, int height, float *sums, const float *w, size_t ldw, const float *x,
                  size_t n, int add, gemm_ahead ahead) {
    const char *ahead_x = ahead.x, *ahead_w = ahead.w;
    const float *row[HEIGHT_MAX / 3]; /* every third: addresses have one factor of ldw, 1 or 2 */
    fvec sum[HEIGHT_MAX][2];
#pragma GCC unroll 4
    for (int i = 0; i < height / 3; i++)
        row[i] = w + (size_t)i * 3 * ldw;
#pragma GCC unroll 14
    for (int i = 0; i < height; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[i][v] = add ? fload(sums + i * WIDTH + v * F_LANES) : fzero();
    for (; n >= AHEAD_WORDS; n -= AHEAD_WORDS) {
        __builtin_prefetch(ahead_x, 0, 2);
        __builtin_prefetch(ahead_w, 0, 2);
        ahead_x += LINE;
        ahead_w += LINE;
#pragma GCC unroll 1
        for (int k = 0; k < AHEAD_WORDS; k++, x += WIDTH) {
            add_word(sum, vectors, height, row, ldw, x);
#pragma GCC unroll 4
            for (int i = 0; i < height / 3; i++)
                row[i]++;
        }
    }
    for (; n; n--, x += WIDTH) {
        add_word(sum, vectors, height, row, ldw, x);
#pragma GCC unroll 4
        for (int i = 0; i < height / 3; i++)
            row[i]++;
    }
#pragma GCC unroll 14
    for (int i = 0; i < height; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            fstore(sums + i * WIDTH + v * F_LANES, sum[i][v]);
}

#define PANEL(vectors, height)                                                                     \
    static TARGET CLEAR_REGISTERS void panel_##vectors(float *sums, const float *w, size_t ldw,    \
                                                       const float *x, size_t n, int add,          \
                                                       gemm_ahead ahead) {                         \
        panel(vectors, height, sums, w, ldw, x, n, add, ahead);                                    \
    }
PANEL(1, HEIGHT_1)
PANEL(2, HEIGHT)
#undef PANEL

/* Four words of each of eight rows, `stride` bytes apart: column[j] has word j of all. Halves of
 * rows 0 and 4 are loaded into one vector, and so on, so that nothing has to cross the lanes. */
INLINE void transpose_block(f8 column[4], const uint8_t *from, size_t stride) {
    f8 v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        v[i] = f8_join(from + i * stride, from + (i + 4) * stride);
    f8 a = f8_unpack_low(v[0], v[1]), b = f8_unpack_high(v[0], v[1]);
    f8 c = f8_unpack_low(v[2], v[3]), d = f8_unpack_high(v[2], v[3]);
    column[0] = f8_pairs_low(a, c);
    column[1] = f8_pairs_high(a, c);
    column[2] = f8_pairs_low(b, d);
    column[3] = f8_pairs_high(b, d);
}

static TARGET CLEAR_REGISTERS void transpose(float *to, const uint8_t *from, size_t stride,
                                             size_t n) {
    for (size_t at = 0; at < n; at += 4) {
        f8 column[4];
        transpose_block(column, from + at * 4, stride);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++)
            f8_store(to + (at + j) * WIDTH, column[j]);
    }
}

INLINE void finish_as(const float *sums, size_t h, size_t rows, const gemm_epilogue *end) {
    for (size_t r = 0; r < rows; r += 4)
        for (size_t i = 0; i < h; i += 8) {
            f8 column[4];
            transpose_block(column, (const uint8_t *)(sums + i * WIDTH + r), WIDTH * sizeof(float));
            if (h - i >= 8 && rows - r >= 4) {
#pragma GCC unroll 4
                for (size_t j = 0; j < 4; j++)
                    put_8(column[j], end, r + j, i);
            } else {
                float some[4][8];
                for (size_t j = 0; j < 4; j++)
                    f8_store(some[j], column[j]);
                for (size_t j = 0; j < 4 && r + j < rows; j++)
                    put_some(some[j], end, r + j, i, h - i < 8 ? h - i : 8);
                ccmem_wipe(some, sizeof some);
            }
        }
}

static TARGET CLEAR_REGISTERS void finish(const float *sums, size_t h, size_t rows,
                                          const gemm_epilogue *end) {
    /* Which the stores cannot change, as far as a compiler knows. Most are of one kind, for which
     * nothing is asked at each vector. */
    const gemm_epilogue known = *end, bare = {.y = end->y, .ldy = end->ldy};
    if (known.scale || known.bias || known.halves || known.add)
        finish_as(sums, h, rows, &known);
    else
        finish_as(sums, h, rows, &bare);
}

const gemm_ops GEMM_OPS = {.lanes = F_LANES,
                           .width = WIDTH,
                           .height = {HEIGHT_1, HEIGHT},
                           .dot_rows = DOT_ROWS,
                           .unit = UNIT,
                           .convert = CONVERT,
                           .dot = {dot_1, dot_2, dot_3,
#if DOT_ROWS > 3
                                   dot_4, dot_5, dot_6
#endif
                           },
                           .panel = {panel_1, panel_2},
                           .ahead_words = AHEAD_WORDS,
                           .transpose = transpose,
                           .finish = finish};
