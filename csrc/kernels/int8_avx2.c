/* SPDX-License-Identifier: Apache-2.0
 * Products of int8 with AVX2: AMD from Zen, Intel from Haswell.
 *
 * VPMADDUBSW adds two products of an unsigned and a signed byte in 16 bits, and saturates above
 * 32767. It gets |w| and x with the sign of w, so at most 2 * 128 * 127 = 32512 comes out: also for
 * w = -128, whose |w| is 128 as an unsigned byte, since x is never -128. In panels, where a vector
 * of W meets many rows of x, both are of 16 bits for VPMADDWD: as many multiplications, and no
 * signs to move. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/int8_avx2.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("avx2")))
#include "kernels/int8_v256.h"

#define DOT_FIRST(w) (void)0
#define DOT_ADD(sum, w, x)                                                                         \
    sum = ADD(sum,                                                                                 \
              _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),  \
                                _mm256_set1_epi16(1)))
#define PANEL_ADD(sum, w, x) sum = ADD(sum, _mm256_madd_epi16(w, x))
#define HEIGHT 6
#define DOT_ROWS 2
#include "kernels/int8_template.h"

static TARGET CLEAR_REGISTERS void convert(void *to, const uint8_t *from, size_t n) {
    int16_t *out = to;
    for (size_t i = 0; i < n; i += 16)
        STORE(out + i,
              _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(from + i))));
}

const int8_ops int8_avx2 = {.lanes = LANES,
                            .width = WIDTH,
                            .height = HEIGHT,
                            .dot_rows = DOT_ROWS,
                            .few_rows = 8,
                            .unit = 2,
                            .quantise = {int8_avx2_quantise_f32, int8_avx2_quantise_bf16},
                            .dot = {dot_1, dot_2},
                            .convert = convert,
                            .pack = int8_avx2_pack_shorts,
                            .panel = {panel_1, panel_2},
                            .finish = int8_avx2_finish_16,
                            .finish_dot = int8_avx2_finish_dot};
#endif
