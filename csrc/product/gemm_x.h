/* SPDX-License-Identifier: Apache-2.0
 * Rows of x in panels, as gemm_panels.c multiplies them. */
#ifndef CCMEM_GEMM_X_H
#define CCMEM_GEMM_X_H

#include "product/gemm_call.h"

/* Bytes of so many rows in panels. */
uint64_t gemm_x_bytes(const gemm_call *c, uint64_t rows);

/* Copies one panel, of `rows` rows of x from number `first` on: to[j * width + r] is word j of
 * row r. What belongs to rows that a last panel lacks is left as it is, or is zeros. */
void gemm_x_pack(const gemm_call *c, uint64_t first, size_t rows, float *to);

#endif
