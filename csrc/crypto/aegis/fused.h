/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens a page of AEGIS-128X2 and multiplies it in the registers it was opened in: included after
 * crypto/aegis/template.h by tiers whose vectors hold both lanes, eight floats, and that have FMA
 * and F16C.
 *
 *   FUSED_TARGET   the target attribute
 *   FUSED_LANES    floats in a vector of the tier's products (kernels/gemv_template.h), 8 or 16
 *
 * A page that is opened and then multiplied fetches nothing from memory while it is multiplied,
 * and what one core can fetch in the rest of the time is less than it could multiply. Here both are
 * one loop, and memory is read at an even pace.
 */

#include "crypto/fused_template.h"

/* In two stages, into L2 and then into L1: see PREFETCH_L2 in crypto/xts/template.h. */
enum { FUSED_NEAR = 1024, FUSED_FAR = 8192 };

/* The bytes of a step: at least two blocks of the cipher and one of W, so that each vector's sum is
 * known when this is compiled. */
#define FUSED_STEP(element)                                                                        \
    (FUSED_BLOCK * (element) < AEGIS_FUSED_STEP ? AEGIS_FUSED_STEP : FUSED_BLOCK * (element))

/* Sums up one run of W's bytes that lies in one page and one row. */
FUSED_INLINE void fused_run(ccmem_dtype dtype, size_t element, VEC s[8], fvec sum[FUSED_SUMS],
                            const uint8_t *p, size_t n, const float *x) {
    for (const uint8_t *end = p + n; p != end; p += FUSED_STEP(element)) {
#pragma GCC unroll 4
        for (size_t i = 0; i < FUSED_STEP(element) / 32; i += 2) {
            VEC w[2] = {vload(p + 32 * i), vload(p + 32 * i + 32)};
            __builtin_prefetch(p + 32 * i + FUSED_NEAR, 0, 3);
            __builtin_prefetch(p + 32 * i + FUSED_FAR, 0, 2);
            open_halves(s, &w[0], &w[1]);
            fused_vector(dtype, sum, w[0], x, i);
            fused_vector(dtype, sum, w[1], x, i + 1);
        }
        x += FUSED_STEP(element) / element;
    }
}

FUSED_INLINE size_t open_fused(ccmem_dtype dtype, size_t element, const uint8_t *key,
                               const uint8_t *src, size_t npages, size_t size,
                               const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                               const fused_rows *d) {
    const shape at = shape_of(2, 0);
    const size_t row_bytes = d->in_features * element;
    size_t i = d->from, done = d->done * element, good = 0;
    float *sums = d->sums, *rest = d->rest;
    fvec sum[FUSED_SUMS];
    load_sums(sum, d->first);
    save_sums(rest, sum);
    for (size_t page = 0; page < npages && good == page; page++) {
        const size_t end = (page + 1) * size;
        VEC s[8];
        start(s, v128_load(key), v128_load(nonce[page]), vcontext(0, 2));
        if (!page)
            verify_run(s, src, i, at, usual_ahead);
        load_sums(sum, rest);
        while (i < d->to && i < end) {
            size_t stop = d->to < end ? d->to : end, n = stop - i;
            if (n > row_bytes - done)
                n = row_bytes - done;
            fused_run(dtype, element, s, sum, src + i, n, d->x + done / element);
            i += n;
            done += n;
            if (done == row_bytes) {
                save_sums(sums, sum);
                sums += FUSED_BLOCK;
                done = 0;
                clear_sums(sum);
            }
        }
        save_sums(rest, sum); /* here, not on the stack while the registers are needed */
        if (i < end)
            verify_run(s, src + i, end - i, at, usual_ahead);
        finish(s, 0, size);
        good += (size_t)same_tag(short_tag(s), tag[page]);
    }
    return good;
}

#define FUSED(name, dtype, element)                                                                \
    static FUSED_TARGET CLEAR_REGISTERS __attribute__((noinline)) size_t                           \
    name(const uint8_t *key, const uint8_t *src, size_t npages, size_t size,                       \
         const uint8_t (*nonce)[16], const uint8_t (*tag)[16], const fused_rows *d) {              \
        return open_fused(dtype, element, key, src, npages, size, nonce, tag, d);                  \
    }
FUSED(fused_f32, CCMEM_F32, 4)
FUSED(fused_f16, CCMEM_F16, 2)
FUSED(fused_bf16, CCMEM_BF16, 2)
FUSED(fused_i8, CCMEM_I8, 1)
#undef FUSED

static const aegis_fused_function AEGIS_FUSED[4] = {[CCMEM_F32] = fused_f32,
                                                    [CCMEM_F16] = fused_f16,
                                                    [CCMEM_BF16] = fused_bf16,
                                                    [CCMEM_I8] = fused_i8};
