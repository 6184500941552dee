/* SPDX-License-Identifier: Apache-2.0
 * The probe of 128-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/probe_template.h"

AES_ROUNDS(rounds, "aes", __m128i, "x", _mm_set1_epi8, _mm_aesenc_si128)
LOAD(load, __attribute__((target("sse2"), noinline)), __m128i, "x")

const probe_ops probe_aesni = {rounds, 16, load};
#endif
