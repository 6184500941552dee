/* SPDX-License-Identifier: Apache-2.0
 * The probe of 256-bit registers. */
#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>

#include "kernels/probe_template.h"

AES_ROUNDS(rounds, "avx2,vaes", __m256i, "x", _mm256_set1_epi8, _mm256_aesenc_epi128)
LOAD(load, __attribute__((target("avx2"), noinline)), __m256i, "x")

const probe_ops probe_vaes256 = {rounds, 32, load};
#endif
