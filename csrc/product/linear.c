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

static ccmem_status check(const linear_product *p) {
    const size_t element = dtype_size(p->dtype);
    const uint64_t nrows = p->nrows, out = p->out_features, in = p->in_features;
    if (!p->store || !element || (nrows && in && !p->x) || (nrows && out && !p->y) ||
        (nrows > 1 && (p->ldx < in || p->ldy < out)))
        return CCMEM_ERR_ARGUMENT;
    return linear_check_matrix(p->store, p->offset, element, out, in);
}

static ccmem_status multiply(const linear_product *p, int halves) {
    const tier_kernels kernels = tier_active_kernels();
    if (!p->nrows || !p->out_features)
        return CCMEM_OK;
    if (p->in_features)
        return gemm_multiply(halves ? kernels.gemm_bf16 : kernels.gemm, p);
    only_bias(p);
    return CCMEM_OK;
}

static void zero_result(const linear_product *p) {
    const uint64_t out = p->out_features;
    const size_t result = p->halves ? sizeof(uint16_t) : sizeof(float);
    for (uint64_t r = 0; r < p->nrows; r++)
        ccmem_wipe((uint8_t *)p->y + r * p->ldy * result, out * result);
}

ccmem_status linear_multiply_parts(const linear_product *p, size_t n, int halves) {
    ccmem_status status = CCMEM_OK;
    for (size_t i = 0; i < n && status == CCMEM_OK; i++)
        status = check(&p[i]);
    if (status == CCMEM_ERR_ARGUMENT)
        return status;
    if (status == CCMEM_OK && p->nrows == 1 && p->in_features)
        status = gemv_multiply(tier_active_kernels().gemv, p, n);
    else
        for (size_t i = 0; i < n && status == CCMEM_OK; i++)
            status = multiply(&p[i], halves);
    for (size_t i = 0; i < n && status != CCMEM_OK; i++)
        zero_result(&p[i]);
    return status;
}

ccmem_status linear_multiply(const linear_product *product, int halves) {
    return linear_multiply_parts(product, 1, halves);
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
