/* SPDX-License-Identifier: Apache-2.0
 * XTS with AES-NI on 128-bit registers: Intel from Westmere to Skylake-X, AMD from Bulldozer to
 * Zen 2, and any newer processor under a system that does not save ymm state. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "crypto/xts/xts.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,sse4.2")))
#include "crypto/gf128/clmul.h"

#define LANES 1
typedef __m128i VEC;

#define vload(p) _mm_loadu_si128((const __m128i *)(p))
#define vstore(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define vstream(p, v) _mm_stream_si128((__m128i *)(p), v)
#define vload_part(p, n) vload(p)
#define vstore_part(p, v, n) vstore(p, v)
#define vxor(a, b) _mm_xor_si128(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vand(a, b) _mm_and_si128(a, b)
#define vadd64(a, b) _mm_add_epi64(a, b)
#define vkey(p) _mm_load_si128((const __m128i *)(p))
#define vlift(t) (t)
#define vaesenc(x, k) _mm_aesenc_si128(x, k)
#define vaesenclast(x, k) _mm_aesenclast_si128(x, k)
#define vaesdec(x, k) _mm_aesdec_si128(x, k)
#define vaesdeclast(x, k) _mm_aesdeclast_si128(x, k)
#define vclmul(a, b, imm) _mm_clmulepi64_si128(a, b, imm)
#define vshl64(v) _mm_slli_si128(v, 8)
#define vremainder() _mm_cvtsi32_si128(GF_REMAINDER)
#define vdouble_carry(t) _mm_shuffle_epi32(_mm_cmpgt_epi64(_mm_setzero_si128(), t), 0x4e)
#define vcarry() _mm_set_epi64x(1, GF_REMAINDER)
#define vnext(t) vdouble(t)

#include "crypto/xts/gen_doubling.h"
#define XTS_OPS xts_aesni
#include "crypto/xts/template.h"
#endif
