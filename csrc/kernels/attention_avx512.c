/* SPDX-License-Identifier: Apache-2.0
 * Attention with AVX-512: Intel from Ice Lake-SP, AMD from Zen 4, where the ciphers use it too. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/attention.h"
#include "memory/secret.h"

#define TARGET __attribute__((target(TARGET_AVX512)))
#include "simd/v512.h"

#include "simd/f8.h"

#define ATTENTION_OPS attention_avx512
#include "kernels/attention_template.h"
#endif
