/* SPDX-License-Identifier: Apache-2.0
 *
 * ccmem_store_linear() for callers whose vectors are of the matrix's own type and whose bias is
 * encrypted as well: what they would convert and open in calls of their own, each dearer than a
 * small product, is done here, in scratch that is wiped. */
#include <string.h>

#include "product/bias.h"
#include "product/gemm.h"
#include "product/halves.h"

static int supported(ccmem_dtype dtype) { return dtype == CCMEM_F32 || dtype == CCMEM_BF16; }

/* What the product takes as it is, and how many floats of scratch the rest needs. */
typedef struct plan {
    int halves; /* bfloat16 is multiplied as such */
    uint64_t x, bias, y;
} plan;

/* CCMEM_ERR_NOMEM where the scratch is more than a size can be. */
static ccmem_status plan_of(linear_product *p, ccmem_dtype x_dtype, const ccmem_bias *bias,
                            ccmem_dtype y_dtype, plan *out, uint64_t *bytes) {
    const int several = p->nrows > 1 && p->in_features;
    const tier_kernels kernels = tier_active_kernels();
    const gemm_ops *ops = kernels.gemm;
    out->halves = several && x_dtype == CCMEM_BF16 && p->dtype == CCMEM_BF16 && kernels.gemm_bf16;
    if (out->halves)
        ops = kernels.gemm_bf16;
    p->halves = several && y_dtype == CCMEM_BF16 && gemm_whole(ops, p);
    out->x = x_dtype == CCMEM_BF16 && !out->halves ? p->nrows * p->in_features : 0;
    out->y = y_dtype == CCMEM_BF16 && !p->halves ? p->nrows * p->out_features : 0;
    out->bias = bias_scratch(bias, p->out_features) / sizeof(float);
    if (__builtin_add_overflow(out->x, out->y, bytes) ||
        __builtin_add_overflow(*bytes, out->bias, bytes) ||
        __builtin_mul_overflow(*bytes, sizeof(float), bytes))
        return CCMEM_ERR_NOMEM;
    return CCMEM_OK;
}

static ccmem_status multiply(linear_product *p, const plan *plan, const ccmem_bias *bias,
                             float *scratch) {
    float *widened = scratch, *biased = widened + plan->x, *summed = biased + plan->bias;
    uint16_t *y = p->y;
    ccmem_status status = bias_floats(bias, p->out_features, (uint8_t *)biased, &p->bias);
    if (status != CCMEM_OK)
        return status;
    if (plan->x) {
        widen_halves(widened, p->x, (size_t)plan->x);
        p->x = widened;
    }
    if (plan->y)
        p->y = summed;
    status = linear_multiply(p, plan->halves);
    if (status == CCMEM_OK && plan->y)
        narrow_to_halves(y, summed, (size_t)plan->y);
    return status;
}

ccmem_status ccmem_store_linear_typed(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                                      uint64_t out_features, uint64_t in_features, const void *x,
                                      ccmem_dtype x_dtype, uint64_t nrows, ccmem_bias bias, void *y,
                                      ccmem_dtype y_dtype) {
    linear_product p = {.store = store,
                        .offset = offset,
                        .dtype = dtype,
                        .out_features = out_features,
                        .in_features = in_features,
                        .x = x,
                        .nrows = nrows,
                        .ldx = in_features,
                        .y = y,
                        .ldy = out_features};
    uint64_t nx, ny, bytes = 0;
    uint8_t *scratch = NULL;
    plan plan;
    if (!store || !dtype_size(dtype) || !supported(x_dtype) || !supported(y_dtype) ||
        !bias_valid(&bias))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, in_features, &nx) ||
        __builtin_mul_overflow(nrows, out_features, &ny))
        return CCMEM_ERR_RANGE;
    if ((nx && !x) || (ny && !y))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = plan_of(&p, x_dtype, &bias, y_dtype, &plan, &bytes);
    if (status == CCMEM_OK && bytes)
        status = ccmem_plain_alloc(bytes, &scratch);
    if (status == CCMEM_OK) {
        status = multiply(&p, &plan, &bias, (float *)scratch);
        ccmem_plain_free(scratch);
    }
    if (status != CCMEM_OK && ny)
        ccmem_wipe(y, ny * dtype_size(y_dtype));
    return status;
}
