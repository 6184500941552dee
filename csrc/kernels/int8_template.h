/* SPDX-License-Identifier: Apache-2.0
 *
 * The sums of int8 products of every SIMD tier. A tier file defines TARGET and what follows, then
 * includes this file once.
 *
 *   VEC, VBYTES                  a vector and its bytes
 *   LOAD(p) STORE(p, v) ZERO()   at any address
 *   ADD(a, b)                    32-bit lanes
 *   SPREAD(p)                    the word at p in each lane
 *   TOTALS(v)                    the sums of four vectors' lanes, as an __m128i
 *   DOT_FIRST(w)                 what is done to a vector of W once for all rows of x
 *   DOT_ADD(sum, w, x)           adds the products of bytes of W, and of x, in fours
 *   PANEL_ADD(sum, w, x)         those of the words of a panel
 *   HEIGHT, DOT_ROWS
 *
 * The blocks are as large as the registers allow, as in kernels/gemm_template.h: each load must
 * serve several products.
 */

enum { LANES = VBYTES / 4, WIDTH = 2 * LANES };

/* The products of one vector of each row; the rows of W that there are not are the first again. */
INLINE void dot_step(size_t rows, VEC sum[DOT_ROWS][INT8_DOT_HEIGHT],
                     const uint8_t *const row[INT8_DOT_HEIGHT], size_t at, const int8_t *x,
                     size_t ldx) {
    VEC v[DOT_ROWS];
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
        v[r] = LOAD(x + r * ldx);
#pragma GCC unroll 4
    for (size_t i = 0; i < INT8_DOT_HEIGHT; i++) {
        VEC u = LOAD(row[i] + at);
        DOT_FIRST(u);
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++)
            DOT_ADD(sum[r][i], u, v[r]);
    }
}

INLINE void dot(size_t rows, int32_t *sums, size_t lds, const uint8_t *w, size_t ldw, size_t h,
                const int8_t *x, size_t ldx, size_t n) {
    const uint8_t *row[INT8_DOT_HEIGHT];
    VEC sum[DOT_ROWS][INT8_DOT_HEIGHT];
#pragma GCC unroll 4
    for (size_t i = 0; i < INT8_DOT_HEIGHT; i++)
        row[i] = w + (i < h ? i : 0) * ldw;
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (size_t i = 0; i < INT8_DOT_HEIGHT; i++)
            sum[r][i] = ZERO();
    size_t at = 0;
    for (; at + VBYTES <= n; at += VBYTES)
        dot_step(rows, sum, row, at, x + at, ldx);
    if (at < n) {
        int8_t rest[DOT_ROWS][VBYTES];
        for (size_t r = 0; r < rows; r++) {
            memset(rest[r], 0, VBYTES);
            copy_secret(rest[r], x + r * ldx + at, n - at);
        }
        dot_step(rows, sum, row, at, rest[0], VBYTES);
        ccmem_wipe(rest, sizeof rest);
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
        uint32_t four[INT8_DOT_HEIGHT], *to = (uint32_t *)sums + r * lds;
        const __m128i t = TOTALS(sum[r]);
        if (h == INT8_DOT_HEIGHT) {
            __m128i *at_4 = (__m128i *)(void *)to;
            _mm_storeu_si128(at_4, _mm_add_epi32(_mm_loadu_si128(at_4), t));
        } else {
            _mm_storeu_si128((__m128i *)(void *)four, t);
            for (size_t i = 0; i < h; i++)
                to[i] += four[i];
            ccmem_wipe(four, sizeof four);
        }
    }
}

#define DOT(rows)                                                                                  \
    static TARGET CLEAR_REGISTERS void dot_##rows(int32_t *sums, size_t lds, const uint8_t *w,     \
                                                  size_t ldw, size_t h, const int8_t *x,           \
                                                  size_t ldx, size_t n) {                          \
        dot(rows, sums, lds, w, ldw, h, x, ldx, n);                                                \
    }
DOT(1)
DOT(2)
#if DOT_ROWS > 2
DOT(3)
#endif
#if DOT_ROWS > 3
DOT(4)
DOT(5)
DOT(6)
#endif
#undef DOT

INLINE void panel(int vectors, int32_t *sums, const uint8_t *w, size_t ldw, const int32_t *x,
                  size_t n) {
    VEC sum[HEIGHT][2];
#pragma GCC unroll 14
    for (size_t i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[i][v] = LOAD(sums + i * WIDTH + (size_t)v * LANES);
#pragma GCC unroll 2
    for (; n; n--, w += 4, x += WIDTH) {
        VEC column[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            column[v] = LOAD(x + v * LANES);
#pragma GCC unroll 14
        for (size_t i = 0; i < HEIGHT; i++) {
            const VEC u = SPREAD(w + i * ldw);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                PANEL_ADD(sum[i][v], u, column[v]);
        }
    }
#pragma GCC unroll 14
    for (size_t i = 0; i < HEIGHT; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            STORE(sums + i * WIDTH + (size_t)v * LANES, sum[i][v]);
}

static TARGET CLEAR_REGISTERS void panel_1(int32_t *sums, const uint8_t *w, size_t ldw,
                                           const int32_t *x, size_t n) {
    panel(1, sums, w, ldw, x, n);
}

static TARGET CLEAR_REGISTERS void panel_2(int32_t *sums, const uint8_t *w, size_t ldw,
                                           const int32_t *x, size_t n) {
    panel(2, sums, w, ldw, x, n);
}
