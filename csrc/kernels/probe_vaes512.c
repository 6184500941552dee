/* SPDX-License-Identifier: Apache-2.0
 * The probe of 512-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/probe_template.h"

AES_ROUNDS(rounds, "avx512f,vaes", __m512i, "v", _mm512_set1_epi8, _mm512_aesenc_epi128)
LOAD(load, __attribute__((target("avx512f"), noinline)), __m512i, "v")

const probe_ops probe_vaes512 = {rounds, 64, load};
#endif
