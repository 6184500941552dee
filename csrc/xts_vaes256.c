/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 256-bit registers, no AVX-512: AMD Zen 3, Intel Alder Lake and its successors. */
#include "cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "secret.h"
#include "xts.h"

#define TARGET __attribute__((target("aes,pclmul,avx2,vaes,vpclmulqdq")))
#include "gf128_clmul.h"

#define LANES 2
typedef __m256i VEC;

#define vload(p) _mm256_loadu_si256((const __m256i *)(p))
#define vstore(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define vstream(p, v) _mm256_stream_si256((__m256i *)(p), v)
#define vxor(a, b) _mm256_xor_si256(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vand(a, b) _mm256_and_si256(a, b)
#define vadd64(a, b) _mm256_add_epi64(a, b)
#define vkey(p) _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(p)))
#define vlift(t) _mm256_broadcastsi128_si256(t)
#define vaesenc(x, k) _mm256_aesenc_epi128(x, k)
#define vaesenclast(x, k) _mm256_aesenclast_epi128(x, k)
#define vaesdec(x, k) _mm256_aesdec_epi128(x, k)
#define vaesdeclast(x, k) _mm256_aesdeclast_epi128(x, k)
#define vclmul(a, b, imm) _mm256_clmulepi64_epi128(a, b, imm)
#define vshl64(v) _mm256_slli_si256(v, 8)
#define vshr64(v) _mm256_srli_si256(v, 8)
#define vsrl(v, n) _mm256_srli_epi64(v, n)
#define vstep(t) vxor(_mm256_slli_si256(t, 1), vclmul(_mm256_srli_si256(t, 15), vremainder(), 0x00))
#define vremainder() _mm256_set1_epi64x(GF_REMAINDER)
#define vdouble_carry(t) _mm256_shuffle_epi32(_mm256_cmpgt_epi64(_mm256_setzero_si256(), t), 0x4e)
#define vcarry() _mm256_set_epi64x(1, GF_REMAINDER, 1, GF_REMAINDER)
#define vlanes(lo, hi) _mm256_set_m128i(hi, lo)

static inline TARGET VEC vload_part(const uint8_t *p, size_t n) {
    return n == 2 ? vload(p) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p));
}

static inline TARGET void vstore_part(uint8_t *p, VEC v, size_t n) {
    if (n == 2)
        vstore(p, v);
    else
        _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(v));
}

static inline TARGET void vstore_lanes(uint8_t *p, VEC v, size_t stride) {
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(v));
    _mm_storeu_si128((__m128i *)(p + stride), _mm256_extracti128_si256(v, 1));
}

#include "xts_gen_doubling.h"
#define XTS_OPS xts_vaes256
#include "xts_template.h"
#endif
