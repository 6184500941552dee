/* SPDX-License-Identifier: Apache-2.0
 * Conversions of W's elements to float32, in order: included by the tiers of
 * kernels/gemm_template.h that multiply these. */

#define CONVERSION(name, operation, element)                                                       \
    static TARGET CLEAR_REGISTERS void name(void *to, const uint8_t *from, size_t n) {             \
        float *out = to;                                                                           \
        for (size_t i = 0; i < n; i += F_LANES)                                                    \
            fstore(out + i, operation(from + i * (element)));                                      \
    }
CONVERSION(convert_f32, fload, 4)
CONVERSION(convert_f16, fload_half, 2)
CONVERSION(convert_bf16, fload_bfloat, 2)
CONVERSION(convert_i8, fload_byte, 1)
#undef CONVERSION

#define CONVERT {convert_f32, convert_f16, convert_bf16, convert_i8}
