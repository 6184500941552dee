/* SPDX-License-Identifier: Apache-2.0
 * A product's bias as floats: opened where it is encrypted, widened where it is bfloat16. */
#include "product/bias.h"

#include "platform/dtype.h"

int bias_valid(const ccmem_bias *bias) {
    return (bias->dtype == CCMEM_F32 || bias->dtype == CCMEM_BF16) && !(bias->data && bias->store);
}

uint64_t bias_scratch(const ccmem_bias *bias, uint64_t n) {
    uint64_t bytes;
    if (!bias->store && (!bias->data || bias->dtype == CCMEM_F32))
        return 0;
    return __builtin_mul_overflow(n, 2 * sizeof(float), &bytes) ? UINT64_MAX : bytes;
}

ccmem_status bias_floats(const ccmem_bias *bias, uint64_t n, uint8_t *scratch, const float **out) {
    float *floats = (float *)(void *)scratch;
    const void *from = bias->data;
    *out = NULL;
    if (!from && !bias->store)
        return CCMEM_OK;
    if (bias->store) {
        void *read = floats + n;
        ccmem_status status =
            ccmem_store_read(bias->store, bias->offset, read, n * dtype_size(bias->dtype));
        if (status != CCMEM_OK)
            return status;
        from = read;
    }
    *out = from;
    if (bias->dtype == CCMEM_BF16) {
        for (uint64_t i = 0; i < n; i++)
            floats[i] = float_of_bfloat16(((const uint16_t *)from)[i]);
        *out = floats;
    }
    return CCMEM_OK;
}
