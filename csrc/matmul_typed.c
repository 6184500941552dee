/* SPDX-License-Identifier: Apache-2.0
 *
 * ccmem_store_linear() for callers whose vectors are of the matrix's own type and whose bias is encrypted
 * as well: what they would convert and open in calls of their own, each dearer than a small product, is
 * done here, in scratch that is wiped. */
#include <string.h>

#include "ccmem.h"
#include "matmul.h"

static void widen(float *to, const uint16_t *from, size_t n) {
    for (size_t i = 0; i < n; i++)
        to[i] = matmul_bf16(from[i]);
}

/* To the nearest, of two the even one; a NaN stays one. Without a branch: which is taken would tell of
 * the numbers. */
static void narrow(uint16_t *to, const float *from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, from + i, sizeof u);
        uint32_t nan = 0 - (uint32_t)((u & 0x7fffffff) > 0x7f800000);
        uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        to[i] = (uint16_t)((rounded & ~nan) | ((u >> 16 | 0x40) & nan));
    }
}

static int supported(ccmem_dtype dtype) { return dtype == CCMEM_F32 || dtype == CCMEM_BF16; }

/* The bias as floats: `bias` itself, or what is made of it in `scratch`, which holds 2 * n floats. */
static ccmem_status get_bias(const ccmem_bias *bias, uint64_t n, float *scratch,
                             const float **out) {
    const void *from = bias->data;
    *out = NULL;
    if (!from && !bias->store)
        return CCMEM_OK;
    if (bias->store) {
        ccmem_status status = ccmem_store_read(bias->store, bias->offset, scratch + n,
                                               n * matmul_element(bias->dtype));
        if (status != CCMEM_OK)
            return status;
        from = scratch + n;
    }
    if (bias->dtype == CCMEM_BF16) {
        widen(scratch, from, (size_t)n);
        from = scratch;
    }
    *out = from;
    return CCMEM_OK;
}

static ccmem_status linear(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                           uint64_t out_features, uint64_t in_features, const void *x,
                           ccmem_dtype x_dtype, uint64_t nrows, const ccmem_bias *bias, void *y,
                           ccmem_dtype y_dtype, float *scratch) {
    const int halves = x_dtype == CCMEM_BF16 && dtype == CCMEM_BF16 && nrows > 1 &&
                       panel_tier(ccmem_tier_active(), 1);
    const uint64_t nx = x_dtype == CCMEM_BF16 && !halves ? nrows * in_features : 0;
    const uint64_t ny = nrows * out_features;
    float *narrowed = y_dtype == CCMEM_BF16 ? scratch + nx + 2 * out_features : NULL;
    const float *added;
    ccmem_status status = get_bias(bias, out_features, scratch + nx, &added);
    if (status != CCMEM_OK)
        return status;
    if (nx) {
        widen(scratch, x, (size_t)nx);
        x = scratch;
    }
    const panel_product product = {
        .store = store, .offset = offset, .dtype = dtype, .out_features = out_features,
        .in_features = in_features, .x = x, .nrows = nrows, .ldx = in_features, .bias = added,
        .y = narrowed ? narrowed : y, .ldy = out_features};
    status = matmul_product(&product, halves);
    if (status == CCMEM_OK && narrowed)
        narrow(y, narrowed, (size_t)ny);
    return status;
}

ccmem_status ccmem_store_linear_typed(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                                      uint64_t out_features, uint64_t in_features, const void *x,
                                      ccmem_dtype x_dtype, uint64_t nrows, ccmem_bias bias,
                                      void *y, ccmem_dtype y_dtype) {
    uint64_t nx, ny, floats = 0, bytes = 0;
    uint8_t *scratch = NULL;
    ccmem_status status = CCMEM_OK;
    if (!supported(x_dtype) || !supported(y_dtype) || !supported(bias.dtype) ||
        (bias.data && bias.store))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, in_features, &nx) ||
        __builtin_mul_overflow(nrows, out_features, &ny))
        return CCMEM_ERR_RANGE;
    if ((nx && !x) || (ny && !y))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_add_overflow(nx, ny, &floats) ||
        __builtin_add_overflow(floats, out_features, &floats) ||
        __builtin_add_overflow(floats, out_features, &floats) ||
        __builtin_mul_overflow(floats, sizeof(float), &bytes))
        return CCMEM_ERR_NOMEM;
    if (bias.store || bias.dtype == CCMEM_BF16 || x_dtype == CCMEM_BF16 || y_dtype == CCMEM_BF16)
        status = bytes ? ccmem_plain_alloc(bytes, &scratch) : CCMEM_OK;
    if (status == CCMEM_OK) {
        status = linear(store, offset, dtype, out_features, in_features, x, x_dtype, nrows, &bias,
                        y, y_dtype, (float *)scratch);
        ccmem_plain_free(scratch);
    }
    if (status != CCMEM_OK && ny)
        ccmem_wipe(y, ny * matmul_element(y_dtype));
    return status;
}
