/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 256-bit registers, no AVX-512: AMD Zen 3, Intel Alder Lake and its successors.
 */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "crypto/xts/xts.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,avx2,vaes,vpclmulqdq")))
#include "crypto/gf128/clmul.h"

#define LANES 2
typedef __m256i VEC;

#define vload(p) _mm256_loadu_si256((const __m256i *)(p))
#define vstore(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define vstream(p, v) _mm256_stream_si256((__m256i *)(p), v)
#define vxor(a, b) _mm256_xor_si256(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vkey(p) _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(p)))
#define vlift(t) _mm256_broadcastsi128_si256(t)
#define vaesenc(x, k) _mm256_aesenc_epi128(x, k)
#define vaesenclast(x, k) _mm256_aesenclast_epi128(x, k)
#define vaesdec(x, k) _mm256_aesdec_epi128(x, k)
#define vaesdeclast(x, k) _mm256_aesdeclast_epi128(x, k)
#define vclmul(a, b, imm) _mm256_clmulepi64_epi128(a, b, imm)
#define vshl64(v) _mm256_slli_si256(v, 8)
#define vstep(t) vxor(_mm256_slli_si256(t, 1), vclmul(_mm256_srli_si256(t, 15), vremainder(), 0x00))
#define vremainder() _mm256_set1_epi64x(GF_REMAINDER)

static inline TARGET VEC vload_part(const uint8_t *p, size_t n) {
    return n == 2 ? vload(p) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p));
}

static inline TARGET void vstore_part(uint8_t *p, VEC v, size_t n) {
    if (n == 2)
        vstore(p, v);
    else
        _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(v));
}

/* t times x^2 in both lanes, without a carry-less product: each half shifted, the two bits that
 * fall out of it folded into the other. */
INLINE VEC times_x2(VEC t) {
    const VEC zero = _mm256_setzero_si256();
    VEC t2 = _mm256_add_epi64(t, t);
    VEC upper = _mm256_and_si256(_mm256_cmpgt_epi64(zero, t),
                                 _mm256_set_epi64x(2 * GF_REMAINDER, 2, 2 * GF_REMAINDER, 2));
    VEC lower = _mm256_and_si256(_mm256_cmpgt_epi64(zero, t2),
                                 _mm256_set_epi64x(GF_REMAINDER, 1, GF_REMAINDER, 1));
    VEC carry = _mm256_shuffle_epi32(vxor(upper, lower), 0x4e);
    return vxor(_mm256_add_epi64(t2, t2), carry);
}

/* t times x. */
INLINE __m128i gf_times_x(__m128i t) {
    __m128i carry = _mm_shuffle_epi32(_mm_cmpgt_epi64(_mm_setzero_si128(), t), 0x4e);
    carry = _mm_and_si128(carry, _mm_set_epi64x(1, GF_REMAINDER));
    return _mm_xor_si128(_mm_add_epi64(t, t), carry);
}

#define vnext(t) times_x2(t)
#define XTS_PAGES "crypto/xts/pages_vaes256.h"
#define XTS_OPS xts_vaes256
#include "crypto/xts/template.h"
#endif
