/* SPDX-License-Identifier: Apache-2.0
 * ccmem_store_linear_blocks() for callers whose vectors are of bfloat16, or whose bias is encrypted
 * as well: what they would convert and open in calls of their own is done here, in scratch that is
 * wiped. */
#include "platform/dtype.h"
#include "platform/round.h"
#include "product/bias.h"
#include "product/halves.h"

enum { LINE = 64 };

static int supported(ccmem_dtype dtype) { return dtype == CCMEM_F32 || dtype == CCMEM_BF16; }

/* Bytes of scratch for n elements as floats, whole cache lines; none where they are floats. */
static int scratch_of(ccmem_dtype dtype, uint64_t n, uint64_t *bytes) {
    *bytes = 0;
    if (dtype == CCMEM_F32)
        return 1;
    if (n > UINT64_MAX / 2 / sizeof(float))
        return 0;
    *bytes = round_up((size_t)(n * sizeof(float)), LINE);
    return 1;
}

ccmem_status ccmem_store_linear_blocks_typed(ccmem_store *store, uint64_t offset,
                                             ccmem_block_format format, uint64_t out_features,
                                             uint64_t in_features, const float *scale,
                                             const void *x, ccmem_dtype x_dtype, uint64_t nrows,
                                             ccmem_bias bias, void *y, ccmem_dtype y_dtype) {
    uint64_t nx, ny, of_x, of_y, bytes;
    uint8_t *scratch = NULL;
    const float *added;
    if (format == CCMEM_INT8_ROW)
        return ccmem_store_linear_int8(store, offset, out_features, in_features, scale, x, x_dtype,
                                       nrows, bias, y, y_dtype);
    if (!store || !ccmem_block_elements(format) || !supported(x_dtype) || !supported(y_dtype) ||
        !bias_valid(&bias))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, in_features, &nx) ||
        __builtin_mul_overflow(nrows, out_features, &ny))
        return CCMEM_ERR_RANGE;
    if ((nx && !x) || (ny && !y))
        return CCMEM_ERR_ARGUMENT;
    const uint64_t of_bias = bias_scratch(&bias, out_features);
    ccmem_status status = CCMEM_OK;
    if (!scratch_of(x_dtype, nx, &of_x) || !scratch_of(y_dtype, ny, &of_y) ||
        __builtin_add_overflow(of_x, of_y, &bytes) ||
        __builtin_add_overflow(bytes, of_bias, &bytes))
        status = CCMEM_ERR_NOMEM;
    if (status == CCMEM_OK && bytes)
        status = ccmem_plain_alloc(bytes, &scratch);
    if (status == CCMEM_OK) {
        float *widened = (float *)(void *)scratch, *summed = (float *)(void *)(scratch + of_x);
        status = bias_floats(&bias, out_features, scratch + of_x + of_y, &added);
        if (status == CCMEM_OK && of_x)
            widen_halves(widened, x, (size_t)nx);
        if (status == CCMEM_OK)
            status =
                ccmem_store_linear_blocks(store, offset, format, out_features, in_features, scale,
                                          of_x ? widened : x, nrows, added, of_y ? summed : y);
        if (status == CCMEM_OK && of_y)
            narrow_to_halves(y, summed, (size_t)ny);
        ccmem_plain_free(scratch);
    }
    if (status != CCMEM_OK && status != CCMEM_ERR_ARGUMENT && ny)
        ccmem_wipe(y, ny * dtype_size(y_dtype));
    return status;
}
