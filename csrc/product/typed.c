/* SPDX-License-Identifier: Apache-2.0
 *
 * ccmem_store_linear() for callers whose vectors are of the matrix's own type and whose bias is
 * encrypted as well: what they would convert and open in calls of their own, each dearer than a
 * small product, is done here, in scratch that is wiped. Several matrices, one below the other, get
 * their part of each row of y: x is converted once for all, and nothing has to be put together. */
#include <string.h>

#include "product/bias.h"
#include "product/gemm.h"
#include "product/halves.h"

static int supported(ccmem_dtype dtype) { return dtype == CCMEM_F32 || dtype == CCMEM_BF16; }

/* Matrices below each other, and the vectors that all of them have in common. */
typedef struct typed_call {
    const ccmem_part *part;
    uint64_t parts;
    ccmem_bias bias;
    uint64_t out_features; /* of all */
    linear_product p;      /* of one; y is that of the first */
} typed_call;

/* What the product takes as it is, and how many floats of scratch the rest needs. */
typedef struct plan {
    int halves; /* bfloat16 is multiplied as such */
    uint64_t x, bias, y;
} plan;

/* CCMEM_ERR_NOMEM where the scratch is more than a size can be. What is chosen depends on nothing
 * that differs between the parts. */
static ccmem_status plan_of(typed_call *c, ccmem_dtype x_dtype, ccmem_dtype y_dtype, plan *out,
                            uint64_t *bytes) {
    linear_product *p = &c->p;
    const int several = p->nrows > 1 && p->in_features;
    const tier_kernels kernels = tier_active_kernels();
    const gemm_ops *ops = kernels.gemm;
    out->halves = several && x_dtype == CCMEM_BF16 && p->dtype == CCMEM_BF16 && kernels.gemm_bf16;
    if (out->halves)
        ops = kernels.gemm_bf16;
    p->halves = several && y_dtype == CCMEM_BF16 && gemm_whole(ops, p);
    out->x = x_dtype == CCMEM_BF16 && !out->halves ? p->nrows * p->in_features : 0;
    out->y = y_dtype == CCMEM_BF16 && !p->halves ? p->nrows * c->out_features : 0;
    out->bias = bias_scratch(&c->bias, c->out_features) / sizeof(float);
    if (__builtin_add_overflow(out->x, out->y, bytes) ||
        __builtin_add_overflow(*bytes, out->bias, bytes) ||
        __builtin_mul_overflow(*bytes, sizeof(float), bytes))
        return CCMEM_ERR_NOMEM;
    return CCMEM_OK;
}

static ccmem_status multiply(typed_call *c, const plan *plan, float *scratch) {
    float *widened = scratch, *biased = widened + plan->x, *summed = biased + plan->bias;
    const float *bias;
    uint8_t *y = plan->y ? (uint8_t *)summed : c->p.y;
    const size_t result = c->p.halves ? sizeof(uint16_t) : sizeof(float);
    ccmem_status status = bias_floats(&c->bias, c->out_features, (uint8_t *)biased, &bias);
    if (plan->x && status == CCMEM_OK) {
        widen_halves(widened, c->p.x, (size_t)plan->x);
        c->p.x = widened;
    }
    for (uint64_t i = 0, at = 0; i < c->parts && status == CCMEM_OK;) {
        linear_product p[LINEAR_PARTS];
        size_t n = 0;
        for (; n < LINEAR_PARTS && i < c->parts; n++, i++) {
            p[n] = c->p;
            p[n].store = c->part[i].store;
            p[n].offset = c->part[i].offset;
            p[n].out_features = c->part[i].out_features;
            p[n].bias = bias ? bias + at : NULL;
            p[n].y = y + at * result;
            at += p[n].out_features;
        }
        status = linear_multiply_parts(p, n, plan->halves);
    }
    if (status == CCMEM_OK && plan->y)
        narrow_to_halves(c->p.y, summed, (size_t)plan->y);
    return status;
}

/* Rows of W of all parts; 0: more than a number can be. */
static int add_up(typed_call *c) {
    for (uint64_t i = 0; i < c->parts; i++)
        if (__builtin_add_overflow(c->out_features, c->part[i].out_features, &c->out_features))
            return 0;
    return 1;
}

static int all_there(const ccmem_part *part, uint64_t parts) {
    if (!part || !parts)
        return 0;
    for (uint64_t i = 0; i < parts; i++)
        if (!part[i].store)
            return 0;
    return 1;
}

ccmem_status ccmem_store_linear_parts(const ccmem_part *parts, uint64_t nparts, ccmem_dtype dtype,
                                      uint64_t in_features, const void *x, ccmem_dtype x_dtype,
                                      uint64_t nrows, ccmem_bias bias, void *y,
                                      ccmem_dtype y_dtype) {
    typed_call c = {.part = parts, .parts = nparts, .bias = bias};
    uint64_t nx, ny, bytes = 0;
    uint8_t *scratch = NULL;
    plan plan;
    if (!all_there(parts, nparts) || !dtype_size(dtype) || !supported(x_dtype) ||
        !supported(y_dtype) || !bias_valid(&bias))
        return CCMEM_ERR_ARGUMENT;
    if (!add_up(&c) || __builtin_mul_overflow(nrows, in_features, &nx) ||
        __builtin_mul_overflow(nrows, c.out_features, &ny))
        return CCMEM_ERR_RANGE;
    if ((nx && !x) || (ny && !y))
        return CCMEM_ERR_ARGUMENT;
    c.p = (linear_product){.store = parts[0].store,
                           .dtype = dtype,
                           .in_features = in_features,
                           .x = x,
                           .nrows = nrows,
                           .ldx = in_features,
                           .y = y,
                           .ldy = c.out_features};
    ccmem_status status = plan_of(&c, x_dtype, y_dtype, &plan, &bytes);
    if (status == CCMEM_OK && bytes)
        status = ccmem_plain_alloc(bytes, &scratch);
    if (status == CCMEM_OK) {
        status = multiply(&c, &plan, (float *)scratch);
        ccmem_plain_free(scratch);
    }
    if (status != CCMEM_OK && ny)
        ccmem_wipe(y, ny * dtype_size(y_dtype));
    return status;
}

ccmem_status ccmem_store_linear_typed(ccmem_store *store, uint64_t offset, ccmem_dtype dtype,
                                      uint64_t out_features, uint64_t in_features, const void *x,
                                      ccmem_dtype x_dtype, uint64_t nrows, ccmem_bias bias, void *y,
                                      ccmem_dtype y_dtype) {
    const ccmem_part all = {store, offset, out_features};
    return ccmem_store_linear_parts(&all, 1, dtype, in_features, x, x_dtype, nrows, bias, y,
                                    y_dtype);
}
