/* SPDX-License-Identifier: Apache-2.0
 * AEGIS with AES-NI on 128-bit registers: Intel from Westmere to Skylake-X, AMD from Bulldozer to
 * Zen 2; and AEGIS-128L on every processor with AES instructions. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "crypto/aegis/aegis.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,sse4.2")))
#define WIDE 1
typedef __m128i VEC;

#define vload(p) _mm_loadu_si128((const __m128i *)(p))
#define vstore(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define vstream(p, v) _mm_stream_si128((__m128i *)(p), v)
#define vhalves(p, v) vstream(p, v)
#define vxor(a, b) _mm_xor_si128(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vandxor(a, b, c) vxor(a, _mm_and_si128(b, c))
#define vround(x, k) _mm_aesenc_si128(x, k)
#define vlift(x) (x)
#define vfold(v) (v)
#define vcontext(lane, lanes) _mm_cvtsi32_si128((int)((lane) | ((lanes) - 1) << 8))

#define AEGIS_SPILLS 1
#define AEGIS_OPS aegis_aesni
#include "crypto/aegis/template.h"
#endif
