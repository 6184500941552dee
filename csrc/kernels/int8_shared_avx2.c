/* SPDX-License-Identifier: Apache-2.0
 * What all tables of int8 products on x86 share. Without FMA, which would round once what the
 * contract rounds twice. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <math.h>
#include <string.h>

#include "kernels/int8_avx2.h"
#include "memory/secret.h"
#include "simd/scalar.h"

#define TARGET __attribute__((target("avx2")))
#include "simd/f8.h"

enum { BYTES = 32, WORD = 4, SOME = 8 };

#define load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define store(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)

/* ---- x --------------------------------------------------------------------------------------- */

INLINE __m256 number_8(int half, const void *x, size_t i) {
    if (!half)
        return f8_load((const float *)x + i);
    const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)x + i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* The last numbers of a row, fewer than BYTES, with zeros behind them. */
INLINE void copy_rest(int half, float rest[BYTES], const void *x, size_t at, size_t n) {
    for (size_t i = 0; i < BYTES; i++)
        rest[i] = 0;
    for (size_t i = at; i < n; i++)
        rest[i - at] = half ? float_of_bfloat16(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

INLINE uint32_t highest(__m256i v) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

INLINE int32_t total(__m256i v) {
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

/* How a row becomes bytes, in every lane. */
typedef struct rounding {
    __m256 finite, enlarge, per_step;
} rounding;

INLINE __m256i rounded_8(const rounding *s, __m256 v) {
    v = _mm256_and_ps(v, s->finite);
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_mul_ps(v, s->enlarge), s->per_step));
}

INLINE __m256i rounded_32(const rounding *s, int half, const void *x, size_t i) {
    const __m256i a = rounded_8(s, number_8(half, x, i)),
                  b = rounded_8(s, number_8(half, x, i + 8)),
                  c = rounded_8(s, number_8(half, x, i + 16)),
                  d = rounded_8(s, number_8(half, x, i + 24));
    const __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE __m256i summed(__m256i sum, __m256i q) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE void quantise(int half, int8_t *to, int8_row *row, const void *x, size_t n) {
    const __m256i sizes = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256(), sum = most;
    _Alignas(BYTES) float rest[BYTES];
    size_t i = 0;
    copy_rest(half, rest, x, n / BYTES * BYTES, n);
    for (; i + 8 <= n; i += 8)
        most = _mm256_max_epu32(most,
                                _mm256_and_si256(_mm256_castps_si256(number_8(half, x, i)), sizes));
    for (size_t j = 0; j < BYTES; j += 8)
        most = _mm256_max_epu32(most,
                                _mm256_and_si256(_mm256_castps_si256(number_8(0, rest, j)), sizes));
    uint32_t bits = highest(most);
    const uint32_t finite = below(bits, 0x7f800000);
    const byte_scale s = byte_scale_of(float_of_bits(bits & finite));
    const rounding how = {.finite = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)finite)),
                          .enlarge = _mm256_set1_ps(s.enlarge),
                          .per_step = _mm256_set1_ps(s.per_step)};
    for (i = 0; i + BYTES <= n; i += BYTES) {
        const __m256i q = rounded_32(&how, half, x, i);
        sum = summed(sum, q);
        store(to + i, q);
    }
    if (n % INT8_VECTOR_MAX) {
        const __m256i q = rounded_32(&how, 0, rest, 0);
        sum = summed(sum, q);
        store(to + i, q);
        if (i % INT8_VECTOR_MAX == 0)
            store(to + i + BYTES, _mm256_setzero_si256());
    }
    *row = (int8_row){.scale = pick(finite, s.scale, NAN), .sum = total(sum)};
    ccmem_wipe(rest, sizeof rest);
}

TARGET CLEAR_REGISTERS void int8_avx2_quantise_f32(int8_t *to, int8_row *row, const void *x,
                                                   size_t n) {
    quantise(0, to, row, x, n);
}

TARGET CLEAR_REGISTERS void int8_avx2_quantise_bf16(int8_t *to, int8_row *row, const void *x,
                                                    size_t n) {
    quantise(1, to, row, x, n);
}

/* ---- transposition --------------------------------------------------------------------------- */

TARGET CLEAR_REGISTERS void int8_avx2_convert(void *to, const uint8_t *from, size_t n) {
    uint8_t *out = to;
    for (size_t i = 0; i < n; i += BYTES)
        store(out + i, _mm256_xor_si256(load(from + i), _mm256_set1_epi8(-128)));
}

/* Four words of each of eight rows, of which v[i] has those of rows i and i + 4: column[j] gets
 * word j of all. */
INLINE void transpose_block(f8 column[4], const f8 v[4]) {
    f8 a = f8_unpack_low(v[0], v[1]), b = f8_unpack_high(v[0], v[1]);
    f8 c = f8_unpack_low(v[2], v[3]), d = f8_unpack_high(v[2], v[3]);
    column[0] = f8_pairs_low(a, c);
    column[1] = f8_pairs_high(a, c);
    column[2] = f8_pairs_low(b, d);
    column[3] = f8_pairs_high(b, d);
}

/* Words of four bytes, or of two that are made wider. */
INLINE void pack(size_t width, int wider, int32_t *to, const int8_t *x, size_t ldx, size_t words) {
    for (size_t at = 0; at < words; at += 4) {
        f8 v[4], column[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            const int8_t *p = x + i * ldx + at * (wider ? 2 : 4), *q = p + 4 * ldx;
            v[i] = wider
                       ? _mm256_castsi256_ps(_mm256_cvtepi8_epi16(
                             _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(const void *)p),
                                                _mm_loadl_epi64((const __m128i *)(const void *)q))))
                       : f8_join(p, q);
        }
        transpose_block(column, v);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++)
            f8_store((float *)to + (at + j) * width, column[j]);
    }
}

TARGET CLEAR_REGISTERS void int8_avx2_pack_16(int32_t *to, const int8_t *x, size_t ldx,
                                              size_t words) {
    pack(16, 0, to, x, ldx, words);
}

TARGET CLEAR_REGISTERS void int8_avx2_pack_32(int32_t *to, const int8_t *x, size_t ldx,
                                              size_t words) {
    pack(32, 0, to, x, ldx, words);
}

TARGET CLEAR_REGISTERS void int8_avx2_pack_shorts(int32_t *to, const int8_t *x, size_t ldx,
                                                  size_t words) {
    pack(16, 1, to, x, ldx, words);
}

/* ---- y --------------------------------------------------------------------------------------- */

/* How the sums of row r of x become y. */
typedef struct factors {
    __m256i excess;
    __m256 scale;
} factors;

INLINE factors factors_of(const int8_epilogue *end, size_t r) {
    const uint32_t excess = (uint32_t)end->excess * (uint32_t)end->row[r].sum;
    return (factors){.excess = _mm256_set1_epi32((int32_t)excess),
                     .scale = _mm256_set1_ps(end->row[r].scale)};
}

INLINE f8 value(__m256i sums, const factors *f, f8 scale) {
    return f8_mul(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums, f->excess)), f8_mul(f->scale, scale));
}

INLINE void put_8(__m256i sums, const factors *f, const int8_epilogue *end, size_t r, size_t at) {
    f8 v = value(sums, f, f8_load(end->scale + at));
    if (end->bias)
        v = f8_add(v, f8_load(end->bias + at));
    const size_t to = r * end->ldy + at;
    if (end->halves)
        f8_store_bfloats((uint16_t *)end->y + to, v);
    else
        f8_store((float *)end->y + to, v);
}

/* Fewer than 8. Their own function, since masked stores are slow. */
static TARGET CLEAR_REGISTERS __attribute__((noinline)) void
put_some(__m256i sums, const factors *f, const int8_epilogue *end, size_t r, size_t at, size_t n) {
    const f8_mask mask = f8_lanes_below(n);
    f8 v = value(sums, f, f8_load_some(end->scale + at, mask));
    if (end->bias)
        v = f8_add(v, f8_load_some(end->bias + at, mask));
    const size_t to = r * end->ldy + at;
    if (end->halves) {
        uint16_t half[SOME];
        f8_store_bfloats(half, v);
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)end->y)[to + i] = half[i];
        ccmem_wipe(half, sizeof half);
    } else {
        f8_store_some((float *)end->y + to, mask, v);
    }
}

INLINE void finish(size_t width, const int32_t *sums, size_t h, size_t rows,
                   const int8_epilogue *given) {
    const int8_epilogue end = *given; /* which the stores below do not change */
    for (size_t r = 0; r < rows; r += 4) {
        const size_t some = rows - r < 4 ? rows - r : 4;
        factors f[4];
        for (size_t j = 0; j < some; j++)
            f[j] = factors_of(&end, r + j);
        for (size_t i = 0; i < h; i += SOME) {
            f8 v[4], column[4];
#pragma GCC unroll 4
            for (size_t j = 0; j < 4; j++)
                v[j] = f8_join(sums + (i + j) * width + r, sums + (i + j + 4) * width + r);
            transpose_block(column, v);
            for (size_t j = 0; j < some; j++)
                if (h - i >= SOME)
                    put_8(_mm256_castps_si256(column[j]), &f[j], &end, r + j, i);
                else
                    put_some(_mm256_castps_si256(column[j]), &f[j], &end, r + j, i, h - i);
        }
    }
}

TARGET CLEAR_REGISTERS void int8_avx2_finish_16(const int32_t *sums, size_t h, size_t rows,
                                                const int8_epilogue *end) {
    finish(16, sums, h, rows, end);
}

TARGET CLEAR_REGISTERS void int8_avx2_finish_32(const int32_t *sums, size_t h, size_t rows,
                                                const int8_epilogue *end) {
    finish(32, sums, h, rows, end);
}

TARGET CLEAR_REGISTERS void int8_avx2_finish_dot(const int32_t *sums, size_t lds, size_t h,
                                                 size_t rows, const int8_epilogue *given) {
    const int8_epilogue end = *given;
    for (size_t r = 0; r < rows; r++) {
        const factors f = factors_of(&end, r);
        size_t i = 0;
        for (; i + SOME <= h; i += SOME)
            put_8(load(sums + r * lds + i), &f, &end, r, i);
        if (i < h)
            put_some(_mm256_maskload_epi32(sums + r * lds + i, f8_lanes_below(h - i)), &f, &end, r,
                     i, h - i);
    }
}
#endif
