/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 512-bit registers: what crypto/xts/template.h and crypto/xts/fused.h ask for,
 * but for the tweak generator. Included by the tier's two files. */
#include <immintrin.h>

#include "crypto/xts/xts.h"
#include "memory/secret.h"

#define TARGET                                                                                     \
    __attribute__((target("aes,pclmul,avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")))
#include "crypto/gf128/clmul.h"

#define LANES 4
typedef __m512i VEC;

#define vload(p) _mm512_loadu_si512(p)
#define vstore(p, v) _mm512_storeu_si512(p, v)
#define vstream(p, v) _mm512_stream_si512((__m512i *)(p), v)
#define vload_part(p, n) _mm512_maskz_loadu_epi64((__mmask8)((1u << (2 * (n))) - 1), p)
#define vstore_part(p, v, n) _mm512_mask_storeu_epi64(p, (__mmask8)((1u << (2 * (n))) - 1), v)
#define vxor(a, b) _mm512_xor_si512(a, b)
#define vxor3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define vkey(p) _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)(p)))
#define vlift(t) _mm512_broadcast_i32x4(t)
#define vaesenc(x, k) _mm512_aesenc_epi128(x, k)
#define vaesenclast(x, k) _mm512_aesenclast_epi128(x, k)
#define vaesdec(x, k) _mm512_aesdec_epi128(x, k)
#define vaesdeclast(x, k) _mm512_aesdeclast_epi128(x, k)
#define vclmul(a, b, imm) _mm512_clmulepi64_epi128(a, b, imm)
#define vshl64(v) _mm512_bslli_epi128(v, 8)
#define vstep(t)                                                                                   \
    vxor(_mm512_bslli_epi128(t, 2), vclmul(_mm512_bsrli_epi128(t, 14), vremainder(), 0x00))
#define vremainder() _mm512_set1_epi64(GF_REMAINDER)

#define XTS_DOT dots
static const xts_dot_function dots[4];
#define DOT_TARGET TARGET
