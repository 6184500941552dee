/* SPDX-License-Identifier: Apache-2.0
 * What all tables of int8 products on x86 share, in AVX2: x rounded and packed, sums finished. The
 * functions are those of kernels/int8.h, with the width of the panels in their names. */
#ifndef CCMEM_INT8_AVX2_H
#define CCMEM_INT8_AVX2_H

#include "kernels/int8.h"

void int8_avx2_quantise_f32(int8_t *to, int8_row *row, const void *x, size_t n);
void int8_avx2_quantise_bf16(int8_t *to, int8_row *row, const void *x, size_t n);
void int8_avx2_convert(void *to, const uint8_t *from, size_t n); /* + 128 */
void int8_avx2_pack_16(int32_t *to, const int8_t *x, size_t ldx, size_t words);
void int8_avx2_pack_32(int32_t *to, const int8_t *x, size_t ldx, size_t words);
void int8_avx2_pack_shorts(int32_t *to, const int8_t *x, size_t ldx, size_t words); /* 16 */
void int8_avx2_finish_16(const int32_t *sums, size_t h, size_t rows, const int8_epilogue *end);
void int8_avx2_finish_32(const int32_t *sums, size_t h, size_t rows, const int8_epilogue *end);
void int8_avx2_finish_dot(const int32_t *sums, size_t lds, size_t h, size_t rows,
                          const int8_epilogue *end);

#endif
