/* SPDX-License-Identifier: Apache-2.0
 *
 * Products with several rows of x in every SIMD tier. A tier file defines the vector type and a few
 * operations, then includes this file once.
 *
 *   TARGET               the tier's target attribute
 *   VEC, LANES           vector of words; how many
 *   vzero vload vstore   0; load and store, not aligned
 *   vspread(p)           one word in all places
 *   vfma(a, b, c)        a * b + c, for each word
 *   vhalf(v)             the upper half of a vector, or itself, added to the lower: eight floats
 *   HEIGHT, DOT_ROWS, UNIT   of the table
 *   GEMM_OPS            the name of the table to define, after CONVERT, its conversions
 *
 * Two ways to sum. Few rows of x: along k, a block of 4 rows of W times DOT_ROWS rows of x, whose
 * sums are added up across their lanes at the end. More: a block of HEIGHT rows of W times a panel
 * of x, in which the words of 2 * LANES rows with the same k lie side by side, so that a sum has a
 * lane and W's words are spread. The blocks are as large as the registers allow: each load must
 * serve several multiply-adds.
 */

#define INLINE static inline __attribute__((always_inline)) TARGET

enum { WIDTH = 2 * LANES };

/* Lanes below n, at most 8. */
INLINE __m256i lanes_below(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The upper halves of eight floats, as bfloat16_of() in kernels/scalar.h rounds them. */
INLINE __m128i rounded(__m256 v) {
    const __m256i u = _mm256_castps_si256(v), upper = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i near =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff)),
                          16);
    const __m256i half = _mm256_blendv_epi8(near, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)),
                                            _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08));
}

/* Fewer than 8 sums. Their own function, since masked stores are slow. */
static TARGET CLEAR_REGISTERS __attribute__((noinline)) void
put_some(const float sums[8], const gemm_epilogue *end, size_t r, size_t at, size_t n) {
    const __m256i mask = lanes_below(n);
    __m256 sum = _mm256_maskload_ps(sums, mask);
    const size_t to = r * end->ldy + at;
    if (end->add)
        sum = _mm256_add_ps(_mm256_maskload_ps((float *)end->y + to, mask), sum);
    if (end->scale)
        sum = _mm256_mul_ps(sum, _mm256_maskload_ps(end->scale + at, mask));
    if (end->bias)
        sum = _mm256_add_ps(sum, _mm256_maskload_ps(end->bias + at, mask));
    if (end->halves) {
        uint16_t half[8];
        _mm_storeu_si128((__m128i *)half, rounded(sum));
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)end->y)[to + i] = half[i];
    } else {
        _mm256_maskstore_ps((float *)end->y + to, mask, sum);
    }
}

/* The sums of row r of x and eight rows of W from number `at` on. */
INLINE void put_8(__m256 sum, const gemm_epilogue *end, size_t r, size_t at) {
    const size_t to = r * end->ldy + at;
    if (end->add)
        sum = _mm256_add_ps(_mm256_loadu_ps((float *)end->y + to), sum);
    if (end->scale)
        sum = _mm256_mul_ps(sum, _mm256_loadu_ps(end->scale + at));
    if (end->bias)
        sum = _mm256_add_ps(sum, _mm256_loadu_ps(end->bias + at));
    if (end->halves)
        _mm_storeu_si128((__m128i *)(void *)((uint16_t *)end->y + to), rounded(sum));
    else
        _mm256_storeu_ps((float *)end->y + to, sum);
}

/* Of four. */
INLINE void put_4(__m128 sum, const gemm_epilogue *end, size_t r, size_t at) {
    const size_t to = r * end->ldy + at;
    if (end->add)
        sum = _mm_add_ps(_mm_loadu_ps((float *)end->y + to), sum);
    if (end->scale)
        sum = _mm_mul_ps(sum, _mm_loadu_ps(end->scale + at));
    if (end->bias)
        sum = _mm_add_ps(sum, _mm_loadu_ps(end->bias + at));
    if (end->halves)
        _mm_storel_epi64((__m128i *)(void *)((uint16_t *)end->y + to),
                         rounded(_mm256_castps128_ps256(sum)));
    else
        _mm_storeu_ps((float *)end->y + to, sum);
}

/* The sums of four vectors' lanes. */
INLINE __m128 totals(const VEC v[4]) {
    __m256 a = vhalf(v[0]), b = vhalf(v[1]), c = vhalf(v[2]), d = vhalf(v[3]);
    a = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    c = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    a = _mm256_add_ps(_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}

INLINE void dot(size_t rows, const float *w, size_t ldw, size_t h, const uint8_t *x, size_t ldx,
                size_t vectors, const gemm_epilogue *end) {
    const float *row[GEMM_DOT_HEIGHT];
    VEC sum[DOT_ROWS][GEMM_DOT_HEIGHT];
#pragma GCC unroll 4
    for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++)
        row[i] = w + (i < h ? i : 0) * ldw;
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++)
            sum[r][i] = vzero();
    for (size_t at = 0; at < vectors * LANES; at += LANES) {
        VEC v[DOT_ROWS];
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++)
            v[r] = vload((const float *)(const void *)x + r * ldx + at);
#pragma GCC unroll 4
        for (size_t i = 0; i < GEMM_DOT_HEIGHT; i++) {
            VEC u = vload(row[i] + at);
#pragma GCC unroll 6
            for (size_t r = 0; r < rows; r++)
                sum[r][i] = vfma(u, v[r], sum[r][i]);
        }
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
        const __m128 four = totals(sum[r]);
        if (h == GEMM_DOT_HEIGHT) {
            put_4(four, end, r, 0);
        } else {
            float some[8];
            _mm_storeu_ps(some, four);
            put_some(some, end, r, 0, h);
            ccmem_wipe(some, sizeof some);
        }
    }
}

#define DOT(rows)                                                                                  \
    static TARGET CLEAR_REGISTERS void dot_##rows(const float *w, size_t ldw, size_t h,            \
                                                  const uint8_t *x, size_t ldx, size_t vectors,    \
                                                  const gemm_epilogue *end) {                      \
        dot(rows, w, ldw, h, x, ldx, vectors, end);                                                \
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

INLINE void panel(int vectors, float *sums, const float *w, size_t ldw, const float *x, size_t n) {
    VEC sum[HEIGHT][2];
#pragma GCC unroll 14
    for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[i][v] = vload(sums + i * WIDTH + v * LANES);
    for (; n; n--, w++, x += WIDTH) {
        VEC column[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            column[v] = vload(x + v * LANES);
#pragma GCC unroll 14
        for (int i = 0; i < HEIGHT; i++) {
            VEC u = vspread(w + (size_t)i * ldw);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sum[i][v] = vfma(u, column[v], sum[i][v]);
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            vstore(sums + i * WIDTH + v * LANES, sum[i][v]);
}

static TARGET CLEAR_REGISTERS void panel_1(float *sums, const float *w, size_t ldw, const float *x,
                                           size_t n) {
    panel(1, sums, w, ldw, x, n);
}

static TARGET CLEAR_REGISTERS void panel_2(float *sums, const float *w, size_t ldw, const float *x,
                                           size_t n) {
    panel(2, sums, w, ldw, x, n);
}

/* Four words of each of eight rows, `stride` bytes apart: column[j] has word j of all. Halves of
 * rows 0 and 4 are loaded into one vector, and so on, so that nothing has to cross the lanes. */
INLINE void transpose_block(__m256 column[4], const uint8_t *from, size_t stride) {
    __m256 v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        v[i] = _mm256_insertf128_ps(
            _mm256_castps128_ps256(_mm_loadu_ps((const float *)(const void *)(from + i * stride))),
            _mm_loadu_ps((const float *)(const void *)(from + (i + 4) * stride)), 1);
    __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
    __m256 c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
    column[0] = _mm256_shuffle_ps(a, c, 0x44);
    column[1] = _mm256_shuffle_ps(a, c, 0xee);
    column[2] = _mm256_shuffle_ps(b, d, 0x44);
    column[3] = _mm256_shuffle_ps(b, d, 0xee);
}

static TARGET CLEAR_REGISTERS void transpose(float *to, const uint8_t *from, size_t stride,
                                             size_t n) {
    for (size_t at = 0; at < n; at += 4) {
        __m256 column[4];
        transpose_block(column, from + at * 4, stride);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++)
            _mm256_storeu_ps(to + (at + j) * WIDTH, column[j]);
    }
}

static TARGET CLEAR_REGISTERS void finish(const float *sums, size_t h, size_t rows,
                                          const gemm_epilogue *end) {
    const gemm_epilogue known =
        *end; /* which the stores below cannot change, as far as a compiler knows */
    for (size_t r = 0; r < rows; r += 4)
        for (size_t i = 0; i < h; i += 8) {
            __m256 column[4];
            transpose_block(column, (const uint8_t *)(sums + i * WIDTH + r), WIDTH * sizeof(float));
            if (h - i >= 8 && rows - r >= 4) {
#pragma GCC unroll 4
                for (size_t j = 0; j < 4; j++)
                    put_8(column[j], &known, r + j, i);
            } else {
                float some[4][8];
                for (size_t j = 0; j < 4; j++)
                    _mm256_storeu_ps(some[j], column[j]);
                for (size_t j = 0; j < 4 && r + j < rows; j++)
                    put_some(some[j], end, r + j, i, h - i < 8 ? h - i : 8);
                ccmem_wipe(some, sizeof some);
            }
        }
}

const gemm_ops GEMM_OPS = {.lanes = LANES,
                           .width = WIDTH,
                           .height = HEIGHT,
                           .dot_rows = DOT_ROWS,
                           .unit = UNIT,
                           .convert = CONVERT,
                           .dot = {dot_1, dot_2, dot_3,
#if DOT_ROWS > 3
                                   dot_4, dot_5, dot_6
#endif
                           },
                           .panel = {panel_1, panel_2},
                           .transpose = transpose,
                           .finish = finish};
