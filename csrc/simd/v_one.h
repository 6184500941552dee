/* SPDX-License-Identifier: Apache-2.0
 * The words for vectors of one block, by those for a block. See simd/target.h. */
#ifndef CCMEM_SIMD_V_ONE_H
#define CCMEM_SIMD_V_ONE_H

#define V_BLOCKS 1
typedef v128 VEC;

#define vload(p) v128_load(p)
#define vstore(p, v) v128_store(p, v)
#define vstream(p, v) v128_stream(p, v)
#define vload_part(p, n) vload(p)
#define vstore_part(p, v, n) vstore(p, v)
#define vxor(a, b) v128_xor(a, b)
#define vxor3(a, b, c) vxor(a, vxor(b, c))
#define vand(a, b) v128_and(a, b)
#define vandxor(a, b, c) vxor(a, vand(b, c))
#define vadd64(a, b) v128_add64(a, b)
#define vadd32(a, b) v128_add32(a, b)
#define vshl_bytes(v, n) v128_shl_bytes(v, n)
#define vshr_bytes(v, n) v128_shr_bytes(v, n)
#define vswap64(v) v128_swap64(v)
#define vreverse(v) v128_reverse(v)
#define vnegative64(v) v128_negative64(v)
#define vwords(hi, lo) v128_words(hi, lo)
#define vlow64(n) v128_low32(n)
#define vclmul(a, b, which) v128_clmul(a, b, which)
#define vaesenc(x, k) v128_aesenc(x, k)
#define vaesenclast(x, k) v128_aesenclast(x, k)
#define vaesdec(x, k) v128_aesdec(x, k)
#define vaesdeclast(x, k) v128_aesdeclast(x, k)
#define vlift(b) (b)
#define vkey(p) v128_load_aligned(p)
#define vstream_blocks(p, v) vstream(p, v)
#define vfold(v) (v)
#define vfirst(v) (v)
#define valone(b) (b)

#endif
