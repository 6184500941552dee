/* SPDX-License-Identifier: Apache-2.0
 * The order in which gemv kernels take a vector. */
#include <string.h>

#include "kernels/gemv.h"
#include "memory/secret.h"

CLEAR_REGISTERS void gemv_pack(const gemv_ops *ops, ccmem_dtype dtype, float *packed,
                               const float *x, size_t n) {
    const size_t stride = ops->stride[dtype], lanes = ops->block / GEMV_CHAINS;
    const size_t group = stride * lanes, whole = n / group * group;
    float *last = packed + whole;
    for (size_t first = 0; first < whole; first += group)
        for (size_t k = 0; k < stride; k++)
            for (size_t i = 0; i < lanes; i++)
                *packed++ = x[first + i * stride + k];
    memset(last, 0, (gemv_padded(ops, n) - whole) * sizeof *last);
    for (size_t i = whole; i < n; i++)
        last[(i - whole) % stride * lanes + (i - whole) / stride] = x[i];
}
