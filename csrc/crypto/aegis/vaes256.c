/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-128X2 with VAES, both lanes in one 256-bit register, no AVX-512: AMD Zen 3, Intel Alder
 * Lake and its successors. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "crypto/aegis/aegis.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,avx2,vaes")))
#define WIDE 2
typedef __m256i VEC;

#define vload(p) _mm256_loadu_si256((const __m256i *)(p))
#define vstore(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define vstream(p, v) _mm256_stream_si256((__m256i *)(p), v)
#define vhalves(p, v)                                                                              \
    (_mm_stream_si128((__m128i *)(p), _mm256_castsi256_si128(v)),                                  \
     _mm_stream_si128((__m128i *)(p) + 1, _mm256_extracti128_si256(v, 1)))
#define vxor(a, b) _mm256_xor_si256(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vandxor(a, b, c) vxor(a, _mm256_and_si256(b, c))
#define vround(x, k) _mm256_aesenc_epi128(x, k)
#define vlift(x) _mm256_broadcastsi128_si256(x)
#define vfold(v) _mm_xor_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1))
#define vcontext(lane, lanes) _mm256_set_epi64x(0, 0x0101, 0, 0x0100)

/* Bytes that the loops of crypto/aegis/run_vaes256.h take a turn. */
#define AEGIS_TURN 128
#define AEGIS_SPILLS 1
#define AEGIS_OPS aegis_vaes256
#define AEGIS_DOT dots
static const aegis_dot_function dots[4];
#include "crypto/aegis/template.h"

#define DOT_TARGET __attribute__((target("aes,avx2,vaes,fma,f16c")))
#define DOT_LANES 8
#include "crypto/aegis/fused.h"
#endif
