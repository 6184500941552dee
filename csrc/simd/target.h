/* SPDX-License-Identifier: Apache-2.0
 * Vector words: what the templates of crypto/ and kernels/ are written in. Each instruction set
 * gives them in files of its own; a tier's kernel defines TARGET, the attribute of its functions,
 * then includes the file for its width and the template. All words are macros, so that they need no
 * attribute. A tier for another processor gives these:
 *
 * One block of 16 bytes (v128.h):
 *   v128                          the type; unsigned 64-bit words, the low one first
 *   v128_load v128_store          any address; _aligned: a multiple of 16
 *   v128_stream                   store around the caches, aligned; simd_fence() orders those
 *   v128_zero v128_words(hi, lo) v128_low32(n)  0; two words; n in the lowest 32 bits, else 0
 *   v128_get64(v, i)              word i
 *   v128_xor v128_and v128_add64 v128_add32
 *   v128_shl_bytes v128_shr_bytes by a constant number of bytes
 *   v128_swap64 v128_negative64   words exchanged; all ones in each word whose top bit is set
 *   v128_reverse                  the bytes in the opposite order
 *   v128_clmul(a, b, which)       carry-less product of words: bit 0 of `which` is a's, bit 4 b's
 *   v128_aesenc v128_aesenclast v128_aesdec v128_aesdeclast  one AES round
 *   v128_same(a, b)               1 when equal
 *   SIMD_REGISTER                 the letter by which assembler statements ask for a vector
 * register
 *
 * A vector of V_BLOCKS blocks, VEC (v128.h, v256.h, v512.h):
 *   vload vstore vstream          as above; vstream is aligned to the vector
 *   vload_part vstore_part (.., n)  n < V_BLOCKS blocks, or all; memory behind them is not touched
 *   vxor vxor3 vand vandxor vadd64  vandxor(a, b, c) is a ^ (b & c)
 *   vshl_bytes vshr_bytes vswap64 vnegative64 vreverse vclmul vaesenc ...  block by block
 *   vwords(hi, lo) vlow64(n)      in each block; vlow64: what the upper word holds does not matter
 *   vwords_each(hi1, lo1, hi0, lo0)  where V_BLOCKS is 2: of block 1, then of block 0
 *   vlift(b) vkey(p)              a v128 in each block; that at an aligned address
 *   vstream_blocks(p, v)          block by block around the caches, for an address aligned to 16
 *   vfold(v)                      the blocks xored with each other
 *   vfirst(v) valone(b)           the first block of a vector; a vector of b, then zeros
 *
 * A vector of F_LANES floats, fvec (v256.h, v512.h), as large as VEC:
 *   fzero fload fstore fload_aligned fstore_aligned fadd
 *   ffma(a, b, c)                 a * b + c, rounded once
 *   fspread(p)                    the float at p in each lane
 *   ffloats(v)                    of VEC: its bits
 *   fhalves(v, i)                 of VEC's binary16 numbers: half number i
 *   fbfloats(v, i)                of its bfloat16 numbers: every second, from number i on
 *   fbytes(v, i)                  of its signed bytes: every fourth, from number i on
 *   fload_half fload_bfloat fload_byte (p)  F_LANES numbers of these types, in order
 *   ffold8(v) ffold8_most(v)      eight: the upper half added to the lower; the higher ones
 *   fall(x)                       x in each lane
 *   fsub fmul fdiv
 *   fmost(a, b)                   the higher one; b, when one of them is not a number
 *   fsize(v) fsigned(v, s)        |v|; v >= 0 with the sign of s
 *   fshl(v, n)                    the bits of each lane shifted to the left
 *   fclear_less(v, a, b)          0 where a < b, else v
 *   fload_some fstore_some (p, n ..)  the first n <= F_LANES; memory of others is not touched
 *   fsome(n, a, b)                the first n of a, then those of b
 *   fstore_half fstore_bfloat fstore_byte (p, v)  the nearest numbers of these types, in order, of
 *                                 two the even one
 *
 * A vector VEC of 16-bit or 32-bit numbers, for F_LANES floats at a time (v256.h, v512.h):
 *   vall32 vadd32                 one in each 32-bit lane; sums (vadd32 also in v128.h)
 *   vmadd16(a, b)                 products of 16-bit lanes, those of each pair added: 32 bits
 *   vwiden8(p)                    2 * F_LANES signed bytes at p as 16-bit lanes
 *   vwiden8_pairs(p, q)           F_LANES signed bytes at p and at q as pairs of 16-bit lanes
 *   fints(v)                      32-bit lanes as floats
 *   fstore_short(p, v)            the nearest whole numbers as 16-bit ones
 *   vpin(v) fpin(v)               makes the compiler hold a variable in a register
 *
 * Eight floats, f8, and four, f4 (f8.h), for sums that leave the registers: see there. */
#ifndef CCMEM_SIMD_TARGET_H
#define CCMEM_SIMD_TARGET_H

#define INLINE static inline __attribute__((always_inline)) TARGET

/* Parts of target attributes. */
#define TARGET_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#define TARGET_PRODUCTS_AVX2 "avx2,fma,f16c"

#endif
