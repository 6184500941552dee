/* SPDX-License-Identifier: Apache-2.0
 * ccmem_store_linear_blocks() for callers whose vectors are of bfloat16, or whose bias is encrypted
 * as well, or of bfloat16: it is opened and converted here, in scratch that is wiped. */
#include "platform/dtype.h"
#include "product/bias.h"
#include "product/blocks.h"

static int supported(ccmem_dtype dtype) { return dtype == CCMEM_F32 || dtype == CCMEM_BF16; }

ccmem_status ccmem_store_linear_blocks_typed(ccmem_store *store, uint64_t offset,
                                             ccmem_block_format format, uint64_t out_features,
                                             uint64_t in_features, const float *scale,
                                             const void *x, ccmem_dtype x_dtype, uint64_t nrows,
                                             ccmem_bias bias, void *y, ccmem_dtype y_dtype) {
    uint64_t nx, ny;
    uint8_t *scratch = NULL;
    const float *added;
    if (format == CCMEM_INT8_ROW)
        return ccmem_store_linear_int8(store, offset, out_features, in_features, scale, x, x_dtype,
                                       nrows, bias, y, y_dtype);
    if (scale || !store || !ccmem_block_elements(format) || !supported(x_dtype) ||
        !supported(y_dtype) || !bias_valid(&bias))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, in_features, &nx) ||
        __builtin_mul_overflow(nrows, out_features, &ny))
        return CCMEM_ERR_RANGE;
    if ((nx && !x) || (ny && !y))
        return CCMEM_ERR_ARGUMENT;
    const uint64_t of_bias = bias_scratch(&bias, out_features);
    ccmem_status status = of_bias ? ccmem_plain_alloc(of_bias, &scratch) : CCMEM_OK;
    if (status == CCMEM_OK) {
        status = bias_floats(&bias, out_features, scratch, &added);
        if (status == CCMEM_OK)
            status = blocks_linear(store, offset, format, out_features, in_features, x,
                                   x_dtype == CCMEM_BF16, nrows, added, y, y_dtype == CCMEM_BF16);
        ccmem_plain_free(scratch);
    }
    if (status != CCMEM_OK && status != CCMEM_ERR_ARGUMENT && ny)
        ccmem_wipe(y, ny * dtype_size(y_dtype));
    return status;
}
