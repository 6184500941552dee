/* SPDX-License-Identifier: Apache-2.0
 * Products of int8 with AVX-VNNI: Intel from Alder Lake, AMD from Zen 5. VPDPBUSD multiplies
 * unsigned bytes by signed ones, so W's elements get 128 more, and the sums 128 times the sum of
 * x. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "kernels/int8_avx2.h"
#include "memory/secret.h"

/* tests/native builds this file for AVX512-VNNI, too, whose instruction does the same. */
#ifndef INT8_VNNI_TARGET
#define INT8_VNNI_TARGET "avx2,avxvnni"
#define INT8_VNNI_ADD(sum, w, x) _mm256_dpbusd_avx_epi32(sum, w, x)
#endif

#define TARGET __attribute__((target(INT8_VNNI_TARGET)))
#include "kernels/int8_v256.h"

#define DOT_FIRST(w) w = _mm256_xor_si256(w, _mm256_set1_epi8(-128))
#define DOT_ADD(sum, w, x) sum = INT8_VNNI_ADD(sum, w, x)
#define PANEL_ADD(sum, w, x) sum = INT8_VNNI_ADD(sum, w, x)
#define HEIGHT 6
#define DOT_ROWS 2
#include "kernels/int8_template.h"

const int8_ops int8_avx_vnni = {.lanes = LANES,
                                .width = WIDTH,
                                .height = HEIGHT,
                                .dot_rows = DOT_ROWS,
                                .few_rows = 8,
                                .unit = 1,
                                .excess = 128,
                                .quantise = {int8_avx2_quantise_f32, int8_avx2_quantise_bf16},
                                .dot = {dot_1, dot_2},
                                .convert = int8_avx2_convert,
                                .pack = int8_avx2_pack_16,
                                .panel = {panel_1, panel_2},
                                .finish = int8_avx2_finish_16,
                                .finish_dot = int8_avx2_finish_dot};
#endif
