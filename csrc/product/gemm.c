/* SPDX-License-Identifier: Apache-2.0
 * Products of an encrypted matrix with several rows of x: which of the two ways they go. */
#include "product/gemm.h"

#include "platform/round.h"
#include "product/gemm_call.h"

static gemm_call call_of(const gemm_ops *ops, const linear_product *product) {
    return (gemm_call){.ops = ops,
                       .sizes = tier_active_sizes(),
                       .p = *product,
                       .element = dtype_size(product->dtype),
                       .unit = ops->unit};
}

/* Up to few_rows sums along k are faster, but for whole_panels: if no more than a ninth of a last
 * panel's rows is missing, as they reach 0.85 to 0.9 of the speed of whole ones. */
static int is_few(const gemm_call *c) {
    const uint64_t rows = c->p.nrows;
    const int whole = c->sizes->whole_panels && gemm_panels_as_is(c) &&
                      rows * 9 >= round_up(rows, c->ops->width) * 8;
    return rows <= c->sizes->few_rows && !whole;
}

int gemm_whole(const gemm_ops *ops, const linear_product *product) {
    const gemm_call c = call_of(ops, product);
    return !is_few(&c) || gemm_few_whole(&c);
}

ccmem_status gemm_multiply(const gemm_ops *ops, const linear_product *product) {
    gemm_call c = call_of(ops, product);
    return is_few(&c) ? gemm_few(&c) : gemm_panels(&c);
}
