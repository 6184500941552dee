/* SPDX-License-Identifier: Apache-2.0
 * Products of an encrypted matrix with several rows of x: which of the two ways they go. */
#include "product/gemm.h"

#include "product/gemm_call.h"

static gemm_call call_of(const gemm_ops *ops, const linear_product *product) {
    return (gemm_call){.ops = ops,
                       .sizes = tier_active_sizes(),
                       .p = *product,
                       .element = dtype_size(product->dtype),
                       .unit = ops->unit};
}

static int is_few(const gemm_call *c) { return c->p.nrows <= c->sizes->few_rows; }

int gemm_whole(const gemm_ops *ops, const linear_product *product) {
    const gemm_call c = call_of(ops, product);
    return !is_few(&c) || gemm_few_whole(&c);
}

ccmem_status gemm_multiply(const gemm_ops *ops, const linear_product *product) {
    gemm_call c = call_of(ops, product);
    return is_few(&c) ? gemm_few(&c) : gemm_panels(&c);
}
