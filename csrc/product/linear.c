/* SPDX-License-Identifier: Apache-2.0
 * The way into all products: arguments checked, gemv or gemm, zeros on failure. */
#include "product/linear.h"

#include "platform/dtype.h"
#include "product/gemm.h"
#include "product/gemv.h"

/* The product of rows without an element: what is left of it is the bias. */
static void only_bias(const linear_product *p) {
    float *y = p->y;
    for (uint64_t r = 0; r < p->nrows; r++, y += p->ldy)
        for (uint64_t o = 0; o < p->out_features; o++)
            y[o] = p->bias ? p->bias[o] : 0.0f;
}

ccmem_status linear_check_matrix(const ccmem_store *store, uint64_t offset, uint64_t element,
                                 uint64_t out_features, uint64_t in_features) {
    uint64_t size = ccmem_store_size(store), row_bytes, bytes;
    ccmem_status status = ccmem_store_check(store);
    if (status != CCMEM_OK)
        return status;
    if (__builtin_mul_overflow(in_features, element, &row_bytes) ||
        __builtin_mul_overflow(row_bytes, out_features, &bytes) || bytes > size ||
        offset > size - bytes)
        return CCMEM_ERR_RANGE;
    return CCMEM_OK;
}

ccmem_status linear_multiply(const linear_product *p, int halves) {
    const size_t element = dtype_size(p->dtype);
    const uint64_t nrows = p->nrows, out = p->out_features, in = p->in_features;
    ccmem_status status;
    if (!p->store || !element || (nrows && in && !p->x) || (nrows && out && !p->y) ||
        (nrows > 1 && (p->ldx < in || p->ldy < out)))
        return CCMEM_ERR_ARGUMENT;
    status = linear_check_matrix(p->store, p->offset, element, out, in);
    if (status == CCMEM_OK && nrows && out) {
        const tier_kernels kernels = tier_active_kernels();
        if (!in)
            only_bias(p);
        else if (nrows > 1)
            status = gemm_multiply(halves ? kernels.gemm_bf16 : kernels.gemm, p);
        else
            status = gemv_multiply(kernels.gemv, p);
    }
    if (status != CCMEM_OK) {
        const size_t result = p->halves ? sizeof(uint16_t) : sizeof(float);
        for (uint64_t r = 0; r < nrows; r++)
            ccmem_wipe((uint8_t *)p->y + r * p->ldy * result, out * result);
    }
    return status;
}

ccmem_status ccmem_store_linear(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                                uint64_t out_features, uint64_t in_features, const float *scale,
                                const float *x, uint64_t nrows, uint64_t ldx, const float *bias,
                                float *y, uint64_t ldy) {
    const linear_product product = {store, offset, dtype, out_features, in_features,
                                    x,     nrows,  ldx,   scale,        bias,
                                    y,     ldy,    0};
    return linear_multiply(&product, 0);
}
