/* SPDX-License-Identifier: Apache-2.0
 * Arithmetic in GF(2^128) by carry-less products, in the words of simd/target.h. Included by a
 * tier file after these. */
#include "crypto/gf128/gf128.h"

/* The remainder in the low word of every block. */
#define vremainder() vlow64(GF_REMAINDER)

/* t x^64: the low half moves up, the high half comes back times the remainder. */
INLINE v128 gf_times_x64(v128 t) {
    v128 fold = v128_clmul(t, v128_low32(GF_REMAINDER), 0x01);
    return v128_xor(v128_shl_bytes(t, 8), fold);
}

/* The full product of two elements. */
INLINE v128 gf_times(v128 a, v128 b) {
    v128 c = v128_low32(GF_REMAINDER);
    v128 mid = v128_xor(v128_clmul(a, b, 0x10), v128_clmul(a, b, 0x01));
    v128 high = v128_xor(v128_clmul(a, b, 0x11), v128_shr_bytes(mid, 8));
    v128 low = v128_xor(v128_clmul(a, b, 0x00), v128_shl_bytes(mid, 8));
    v128 fold = v128_clmul(high, c, 0x01);
    high = v128_xor(high, v128_shr_bytes(fold, 8));
    low = v128_xor(low, v128_shl_bytes(fold, 8));
    return v128_xor(low, v128_clmul(high, c, 0x00));
}
