/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of AEGIS-256X2 on 256-bit registers, for processors with sixteen of them (Zen 3,
 * Alder Lake): two pages side by side.
 *
 * In assembler, because compilers do not keep two states in the registers. An update goes from the
 * last block of the state to the first, and leaves each in its own register but for the first,
 * which goes to the seventh of its page and back with the next update. So two pages take fourteen
 * registers, and each has one more for the keystream. Six rounds keep the two AES pipes of Zen 3
 * busy for three cycles. An update of one page, whose rounds wait for each other, took 4.5 cycles
 * (sealing) and 5.0 (opening), and of two 4.1 and 3.8, in the best of 150 orders that the data
 * dependences allow: those below. */
#ifndef CCMEM_AEGIS256_RUN_VAES256_H
#define CCMEM_AEGIS256_RUN_VAES256_H

#include "crypto/aegis/put_vaes256.h"

/* By numbers of registers. */
#define AEGIS256_ROUND(from, key, to) "vaesenc %%ymm" #key ",%%ymm" #from ",%%ymm" #to "\n\t"
#define AEGIS256_AND(a, b, to) "vpand %%ymm" #a ",%%ymm" #b ",%%ymm" #to "\n\t"
#define AEGIS256_XOR(a, to) "vpxor %%ymm" #a ",%%ymm" #to ",%%ymm" #to "\n\t"
#define AEGIS256_XOR_OF(p, to) "vpxor " p ",%%ymm" #to ",%%ymm" #to "\n\t"
#define AEGIS256_LOAD(p, to) "vmovdqu " p ",%%ymm" #to "\n\t"

/* One block of both pages. S1 to S5 are in registers 1 to 5 and 8 to 12, the keystream comes into
 * 14 and 15; `o` and `n` are the old and the new S0 of the first page, `u` and `w` those of the
 * second. `p` and `q` are the operands in the source, `x` and `y` those in the destination, `put` a
 * macro that stores. What is sealed is used twice and loaded once: see crypto/aegis/template.h. A
 * line for each instruction, which clang-format would fill. */
/* clang-format off */
#define AEGIS256_SEAL_BOTH(o, n, u, w, p, q, x, y, put)                                           \
    AEGIS256_LOAD(q, w)                                                                           \
    AEGIS256_AND(2, 3, 14)                                                                        \
    AEGIS256_AND(9, 10, 15)                                                                       \
    AEGIS256_XOR(5, 14)                                                                           \
    AEGIS256_XOR(8, 15)                                                                           \
    AEGIS256_LOAD(p, n)                                                                           \
    AEGIS256_XOR(w, 15)                                                                           \
    AEGIS256_XOR(n, 14)                                                                           \
    AEGIS256_ROUND(12, w, w)                                                                      \
    AEGIS256_ROUND(5, n, n)                                                                       \
    AEGIS256_XOR(u, w)                                                                            \
    AEGIS256_XOR(o, n)                                                                            \
    AEGIS256_ROUND(4, 5, 5)                                                                       \
    AEGIS256_XOR(11, 15)                                                                          \
    AEGIS256_XOR(12, 15)                                                                          \
    AEGIS256_ROUND(11, 12, 12)                                                                    \
    AEGIS256_ROUND(10, 11, 11)                                                                    \
    AEGIS256_ROUND(9, 10, 10)                                                                     \
    AEGIS256_ROUND(8, 9, 9)                                                                       \
    AEGIS256_ROUND(u, 8, 8)                                                                       \
    AEGIS256_XOR(4, 14)                                                                           \
    AEGIS256_ROUND(3, 4, 4)                                                                       \
    AEGIS256_ROUND(2, 3, 3)                                                                       \
    AEGIS256_ROUND(1, 2, 2)                                                                       \
    AEGIS256_XOR(1, 14)                                                                           \
    AEGIS256_ROUND(o, 1, 1)                                                                       \
    put("%%ymm15", "%%xmm15", y)                                                                  \
    put("%%ymm14", "%%xmm14", x)

#define AEGIS256_OPEN_BOTH(o, n, u, w, p, q, x, y, put)                                           \
    AEGIS256_AND(2, 3, 14)                                                                        \
    AEGIS256_ROUND(12, u, w)                                                                      \
    AEGIS256_XOR(4, 14)                                                                           \
    AEGIS256_ROUND(5, o, n)                                                                       \
    AEGIS256_XOR(5, 14)                                                                           \
    AEGIS256_ROUND(4, 5, 5)                                                                       \
    AEGIS256_ROUND(3, 4, 4)                                                                       \
    AEGIS256_XOR_OF(p, 14)                                                                        \
    AEGIS256_ROUND(2, 3, 3)                                                                       \
    AEGIS256_ROUND(1, 2, 2)                                                                       \
    AEGIS256_AND(9, 10, 15)                                                                       \
    AEGIS256_XOR(12, 15)                                                                          \
    AEGIS256_ROUND(11, 12, 12)                                                                    \
    AEGIS256_XOR(11, 15)                                                                          \
    AEGIS256_ROUND(10, 11, 11)                                                                    \
    AEGIS256_ROUND(9, 10, 10)                                                                     \
    AEGIS256_ROUND(8, 9, 9)                                                                       \
    AEGIS256_XOR(1, 14)                                                                           \
    AEGIS256_ROUND(o, 1, 1)                                                                       \
    AEGIS256_XOR(14, n)                                                                           \
    AEGIS256_XOR_OF(q, 15)                                                                        \
    AEGIS256_XOR(8, 15)                                                                           \
    AEGIS256_ROUND(u, 8, 8)                                                                       \
    AEGIS256_XOR(15, w)                                                                           \
    put("%%ymm14", "%%xmm14", x)                                                                  \
    put("%%ymm15", "%%xmm15", y)

/* n bytes of each page, a positive multiple of 64. The states are in memory at both ends: more
 * operands than these an assembler statement cannot have. `t` points to the first. */
#define AEGIS256_RUN(name, BOTH, put)                                                             \
    INLINE void name(state t[2], uint8_t *dst, const uint8_t *src, size_t apart, size_t n,        \
                     ahead a) {                                                                   \
        uint8_t *dst2 = dst + apart;                                                              \
        const uint8_t *src2 = src + apart;                                                        \
        __asm__ volatile("vmovdqu (%[t]),%%ymm0\n\t"                                              \
                         "vmovdqu 32(%[t]),%%ymm1\n\t"                                            \
                         "vmovdqu 64(%[t]),%%ymm2\n\t"                                            \
                         "vmovdqu 96(%[t]),%%ymm3\n\t"                                            \
                         "vmovdqu 128(%[t]),%%ymm4\n\t"                                           \
                         "vmovdqu 160(%[t]),%%ymm5\n\t"                                           \
                         "vmovdqu 192(%[t]),%%ymm7\n\t"                                           \
                         "vmovdqu 224(%[t]),%%ymm8\n\t"                                           \
                         "vmovdqu 256(%[t]),%%ymm9\n\t"                                           \
                         "vmovdqu 288(%[t]),%%ymm10\n\t"                                          \
                         "vmovdqu 320(%[t]),%%ymm11\n\t"                                          \
                         "vmovdqu 352(%[t]),%%ymm12\n\t"                                          \
                         ".p2align 6\n"                                                           \
                         "1:\n\t"                                                                 \
                         "prefetcht1 (%[src],%[l2])\n\t"                                          \
                         "prefetcht0 (%[src],%[l1])\n\t"                                          \
                         "prefetcht1 (%[src2],%[l2])\n\t"                                         \
                         "prefetcht0 (%[src2],%[l1])\n\t"                                         \
                         BOTH(0, 6, 7, 13, "(%[src])", "(%[src2])", "0(%[dst])", "0(%[dst2])", put)\
                         BOTH(6, 0, 13, 7, "32(%[src])", "32(%[src2])", "32(%[dst])",             \
                              "32(%[dst2])", put)                                                 \
                         "add $64,%[src]\n\t"                                                     \
                         "add $64,%[src2]\n\t"                                                    \
                         "add $64,%[dst]\n\t"                                                     \
                         "add $64,%[dst2]\n\t"                                                    \
                         "sub $64,%[n]\n\t"                                                       \
                         "jnz 1b\n\t"                                                             \
                         "vmovdqu %%ymm0,(%[t])\n\t"                                              \
                         "vmovdqu %%ymm1,32(%[t])\n\t"                                            \
                         "vmovdqu %%ymm2,64(%[t])\n\t"                                            \
                         "vmovdqu %%ymm3,96(%[t])\n\t"                                            \
                         "vmovdqu %%ymm4,128(%[t])\n\t"                                           \
                         "vmovdqu %%ymm5,160(%[t])\n\t"                                           \
                         "vmovdqu %%ymm7,192(%[t])\n\t"                                           \
                         "vmovdqu %%ymm8,224(%[t])\n\t"                                           \
                         "vmovdqu %%ymm9,256(%[t])\n\t"                                           \
                         "vmovdqu %%ymm10,288(%[t])\n\t"                                          \
                         "vmovdqu %%ymm11,320(%[t])\n\t"                                          \
                         "vmovdqu %%ymm12,352(%[t])"                                              \
                         : [src] "+r"(src), [src2] "+r"(src2), [dst] "+r"(dst), [dst2] "+r"(dst2),\
                           [n] "+r"(n)                                                            \
                         : [t] "r"(t), [l1] "r"(a.l1), [l2] "r"(a.l2)                             \
                         : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",\
                           "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",   \
                           "xmm15");                                                              \
    }
/* clang-format on */

AEGIS256_RUN(seal_both, AEGIS256_SEAL_BOTH, AEGIS_PUT)
AEGIS256_RUN(seal_both_around, AEGIS256_SEAL_BOTH, AEGIS_PUT_AROUND)
AEGIS256_RUN(seal_both_around_halves, AEGIS256_SEAL_BOTH, AEGIS_PUT_AROUND_HALVES)
AEGIS256_RUN(open_both, AEGIS256_OPEN_BOTH, AEGIS_PUT)
AEGIS256_RUN(open_both_around, AEGIS256_OPEN_BOTH, AEGIS_PUT_AROUND)
AEGIS256_RUN(open_both_around_halves, AEGIS256_OPEN_BOTH, AEGIS_PUT_AROUND_HALVES)

#endif
