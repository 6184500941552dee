/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector words of simd/v512.h that the templates of kernels/ use, by two 256-bit halves: so a
 * processor without AVX-512 can run what a template does with vectors of 64 bytes, whose rows end
 * with half of one. Aligned loads and stores of other addresses end the program, as they would. See
 * simd/target.h. */
#ifndef CCMEM_TEST_V512_TWICE_H
#define CCMEM_TEST_V512_TWICE_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "simd/target.h"

#define V_BLOCKS 4
#define F_LANES 16

typedef struct VEC {
    __m256i low, high;
} VEC;

typedef struct fvec {
    __m256 low, high;
} fvec;

INLINE VEC vload(const uint8_t *p) {
    return (VEC){_mm256_loadu_si256((const void *)p), _mm256_loadu_si256((const void *)(p + 32))};
}

INLINE VEC vload_part(const uint8_t *p, size_t n) {
    if (n != 2)
        __builtin_trap(); /* the templates want no other part */
    return (VEC){_mm256_loadu_si256((const void *)p), _mm256_setzero_si256()};
}

/* ---- of both halves -------------------------------------------------------------------------- */

#define UNARY(name, operation)                                                                     \
    INLINE fvec name(fvec v) { return (fvec){operation(v.low), operation(v.high)}; }
#define BINARY(name, operation)                                                                    \
    INLINE fvec name(fvec a, fvec b) {                                                             \
        return (fvec){operation(a.low, b.low), operation(a.high, b.high)};                         \
    }

INLINE __m256 size_of_8(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
INLINE __m256 signed_8(__m256 v, __m256 s) {
    return _mm256_or_ps(v, _mm256_and_ps(_mm256_set1_ps(-0.0f), s));
}

BINARY(fadd, _mm256_add_ps)
BINARY(fsub, _mm256_sub_ps)
BINARY(fmul, _mm256_mul_ps)
BINARY(fdiv, _mm256_div_ps)
BINARY(fmost, _mm256_max_ps)
BINARY(fsigned, signed_8)
UNARY(fsize, size_of_8)

INLINE fvec ffma(fvec a, fvec b, fvec c) {
    return (fvec){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

INLINE fvec fall(float x) { return (fvec){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE fvec fzero(void) { return fall(0); }
INLINE fvec fspread(const float *p) { return fall(*p); }
INLINE fvec ffloats(VEC v) {
    return (fvec){_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high)};
}

INLINE __m256 shl_8(__m256 v, int n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), n));
}
#define fshl(v, n) ((fvec){shl_8((v).low, n), shl_8((v).high, n)})

INLINE fvec fclear_less(fvec v, fvec a, fvec b) {
    return (fvec){_mm256_andnot_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), v.low),
                  _mm256_andnot_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ), v.high)};
}

#define fpin(v) (void)(v)
#define ffold8(v) _mm256_add_ps((v).low, (v).high)
#define ffold8_most(v) _mm256_max_ps((v).low, (v).high)

/* ---- memory ---------------------------------------------------------------------------------- */

INLINE fvec fload(const void *p) {
    return (fvec){_mm256_loadu_ps(p), _mm256_loadu_ps((const float *)p + 8)};
}

INLINE void fstore(float *p, fvec v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}

INLINE void check_alignment(const void *p) {
    if ((uintptr_t)p % 64)
        __builtin_trap();
}

INLINE fvec fload_aligned(const float *p) {
    check_alignment(p);
    return fload(p);
}

INLINE void fstore_aligned(float *p, fvec v) {
    check_alignment(p);
    fstore(p, v);
}

INLINE __m256i first_of_8(size_t n, int from) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - from),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE fvec fload_some(const float *p, size_t n) {
    return (fvec){_mm256_maskload_ps(p, first_of_8(n, 0)),
                  _mm256_maskload_ps(p + 8, first_of_8(n, 8))};
}

INLINE void fstore_some(float *p, size_t n, fvec v) {
    _mm256_maskstore_ps(p, first_of_8(n, 0), v.low);
    _mm256_maskstore_ps(p + 8, first_of_8(n, 8), v.high);
}

INLINE fvec fsome(size_t n, fvec a, fvec b) {
    return (fvec){_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(first_of_8(n, 0))),
                  _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(first_of_8(n, 8)))};
}

/* ---- conversions ----------------------------------------------------------------------------- */

INLINE __m256 bfloats_of_8(__m256i v, int i) {
    return _mm256_castsi256_ps(i ? _mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000))
                                 : _mm256_slli_epi32(v, 16));
}

INLINE fvec fbfloats(VEC v, int i) {
    return (fvec){bfloats_of_8(v.low, i), bfloats_of_8(v.high, i)};
}

INLINE __m256 load_bfloats_of_8(const uint8_t *p) {
    const __m128i v = _mm_loadu_si128((const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

INLINE fvec fload_bfloat(const uint8_t *p) {
    return (fvec){load_bfloats_of_8(p), load_bfloats_of_8(p + 16)};
}

INLINE fvec fload_half(const uint8_t *p) {
    return (fvec){_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)),
                  _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 16)))};
}

/* ---- 16-bit and 32-bit numbers --------------------------------------------------------------- */

INLINE VEC vall32(int32_t n) { return (VEC){_mm256_set1_epi32(n), _mm256_set1_epi32(n)}; }

INLINE VEC vadd32(VEC a, VEC b) {
    return (VEC){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

INLINE VEC vmadd16(VEC a, VEC b) {
    return (VEC){_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)};
}

INLINE VEC vwiden8(const uint8_t *p) {
    return (VEC){_mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p)),
                 _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(p + 16)))};
}

INLINE VEC vwiden8_pairs(const uint8_t *p, const uint8_t *q) {
    const __m128i a = _mm_loadu_si128((const void *)p), b = _mm_loadu_si128((const void *)q);
    return (VEC){_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)),
                 _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b))};
}

INLINE fvec fints(VEC v) { return (fvec){_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

#define vpin(v) (void)(v)
#define fstore_short(p, v)                                                                         \
    (_mm_storeu_si128((void *)(p), f8_shorts((v).low)),                                            \
     _mm_storeu_si128((void *)((p) + 8), f8_shorts((v).high)))

/* ---- conversions on the way out -------------------------------------------------------------- */

#define fstore_half(p, v)                                                                          \
    (_mm_storeu_si128((void *)(p), _mm256_cvtps_ph((v).low, _MM_FROUND_TO_NEAREST_INT)),           \
     _mm_storeu_si128((void *)((p) + 8), _mm256_cvtps_ph((v).high, _MM_FROUND_TO_NEAREST_INT)))
#define fstore_bfloat(p, v) (f8_store_bfloats(p, (v).low), f8_store_bfloats((p) + 8, (v).high))

INLINE __m256i whole_8(__m256 v) { return _mm256_cvtps_epi32(v); }

INLINE void fstore_byte(int8_t *p, fvec v) {
    int32_t whole[F_LANES];
    _mm256_storeu_si256((void *)whole, whole_8(v.low));
    _mm256_storeu_si256((void *)(whole + 8), whole_8(v.high));
    for (int i = 0; i < F_LANES; i++)
        p[i] = (int8_t)(whole[i] > 127 ? 127 : whole[i] < -128 ? -128 : whole[i]);
}

#endif
