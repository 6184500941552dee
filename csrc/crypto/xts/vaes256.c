/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 256-bit registers, no AVX-512: AMD Zen 3, Intel Alder Lake and its successors.
 */
#include "platform/cpu.h"

#if CCMEM_X86
#include "crypto/xts/xts.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,avx2,vaes,vpclmulqdq")))
#include "simd/v256.h"

#include "crypto/gf128/clmul.h"

/* t times x^2 in both blocks, without a carry-less product: each word shifted, the two bits that
 * fall out of it folded into the other. */
INLINE VEC times_x2(VEC t) {
    VEC t2 = vadd64(t, t);
    VEC upper = vand(vnegative64(t), vwords(2 * GF_REMAINDER, 2));
    VEC lower = vand(vnegative64(t2), vwords(GF_REMAINDER, 1));
    VEC carry = vswap64(vxor(upper, lower));
    return vxor(vadd64(t2, t2), carry);
}

/* t times x. */
INLINE v128 gf_times_x(v128 t) {
    v128 carry = v128_and(v128_swap64(v128_negative64(t)), v128_words(1, GF_REMAINDER));
    return v128_xor(v128_add64(t, t), carry);
}

#define vnext(t) times_x2(t)
#define XTS_PAGES "crypto/xts/pages_vaes256.h"
#define XTS_OPS xts_vaes256
#include "crypto/xts/template.h"
#endif
