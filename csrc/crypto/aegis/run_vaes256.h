/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of AEGIS-128X2 on 256-bit registers, for processors with sixteen of them (Zen 3,
 * Alder Lake): two blocks at a time, the state going from ymm0-7 to ymm8-15 and back.
 *
 * In assembler, because the order of the instructions is the point and compilers do not keep one.
 * The eight rounds of an update saturate the two AES pipes of Zen 3 for four cycles; its ten logic
 * instructions could go to the other two, but the scheduler also sends them to the AES pipes, where
 * each delays a round that the next update waits for. With the rounds first in program order
 * and the keystream last (which the second set of registers makes possible), an update took
 * 6.0 cycles sealing and 6.6 opening, against 6.3 and 6.8 in the compilers' order; the two orders
 * below are the best of a random search among all that the data dependences allow. Two pages
 * interleaved, with a quarter of the two states in memory, took 6.6: what limits is the pipes, not
 * the latency of one page's chain.
 */
#ifndef CCMEM_AEGIS_RUN_VAES256_H
#define CCMEM_AEGIS_RUN_VAES256_H

#include "crypto/aegis/put_vaes256.h"

/* The eight rounds S(i-1), S(i) -> S'(i): `a` and `b` are macros that name the old and new
 * registers. */
#define AEGIS_ROUND(a, b, to, from) "vaesenc " a(to) "," a(from) "," b(to) "\n\t"
#define AEGIS_XOR(x, y, to) "vpxor " x "," y "," to "\n\t"

#define AEGIS_EVEN(n) "%%ymm" AEGIS_EVEN_##n
#define AEGIS_EVEN_X(n) "%%xmm" AEGIS_EVEN_##n
#define AEGIS_EVEN_0 "0"
#define AEGIS_EVEN_1 "1"
#define AEGIS_EVEN_2 "2"
#define AEGIS_EVEN_3 "3"
#define AEGIS_EVEN_4 "4"
#define AEGIS_EVEN_5 "5"
#define AEGIS_EVEN_6 "6"
#define AEGIS_EVEN_7 "7"
#define AEGIS_ODD(n) "%%ymm" AEGIS_ODD_##n
#define AEGIS_ODD_X(n) "%%xmm" AEGIS_ODD_##n
#define AEGIS_ODD_0 "8"
#define AEGIS_ODD_1 "9"
#define AEGIS_ODD_2 "10"
#define AEGIS_ODD_3 "11"
#define AEGIS_ODD_4 "12"
#define AEGIS_ODD_5 "13"
#define AEGIS_ODD_6 "14"
#define AEGIS_ODD_7 "15"

/* One block: `p` and `q` are the operands of its halves in the source, `x` and `y` those in the
 * destination, `put` a macro that stores. The old registers 0 and 4 end as the ciphertext. A line
 * for each instruction, which clang-format would fill. */
/* clang-format off */
#define AEGIS_SEAL_BLOCK(a, b, p, q, x, y, put)                                                   \
    "vmovdqu " p "," b(4) "\n\t"                                                                  \
    AEGIS_ROUND(a, b, 3, 2)                                                                       \
    AEGIS_ROUND(a, b, 6, 5)                                                                       \
    AEGIS_ROUND(a, b, 5, 4)                                                                       \
    AEGIS_ROUND(a, b, 2, 1)                                                                       \
    AEGIS_ROUND(a, b, 7, 6)                                                                       \
    "vaesenc " b(4) "," a(7) "," b(0) "\n\t"                                                      \
    AEGIS_ROUND(a, b, 1, 0)                                                                       \
    AEGIS_XOR(a(0), b(0), b(0))                                                                   \
    "vpand " a(2) "," a(3) "," a(0) "\n\t"                                                        \
    AEGIS_XOR(a(1), a(0), a(0))                                                                   \
    AEGIS_XOR(a(6), a(0), a(0))                                                                   \
    AEGIS_XOR(b(4), a(0), a(0))                                                                   \
    put(a(0), a##_X(0), x)                                                                        \
    "vmovdqu " q "," a(0) "\n\t"                                                                  \
    "vaesenc " a(0) "," a(3) "," b(4) "\n\t"                                                      \
    AEGIS_XOR(a(4), b(4), b(4))                                                                   \
    "vpand " a(6) "," a(7) "," a(4) "\n\t"                                                        \
    AEGIS_XOR(a(5), a(4), a(4))                                                                   \
    AEGIS_XOR(a(2), a(4), a(4))                                                                   \
    AEGIS_XOR(a(0), a(4), a(4))                                                                   \
    put(a(4), a##_X(4), y)

/* The plaintext is what the new registers 0 and 4 wait for. */
#define AEGIS_OPEN_BLOCK(a, b, p, q, x, y, put)                                                   \
    AEGIS_ROUND(a, b, 7, 6)                                                                       \
    AEGIS_ROUND(a, b, 6, 5)                                                                       \
    AEGIS_ROUND(a, b, 5, 4)                                                                       \
    AEGIS_ROUND(a, b, 4, 3)                                                                       \
    AEGIS_ROUND(a, b, 2, 1)                                                                       \
    AEGIS_ROUND(a, b, 0, 7)                                                                       \
    AEGIS_ROUND(a, b, 1, 0)                                                                       \
    AEGIS_ROUND(a, b, 3, 2)                                                                       \
    AEGIS_XOR(q, a(5), a(5))                                                                      \
    "vpand " a(6) "," a(7) "," a(4) "\n\t"                                                        \
    AEGIS_XOR(a(2), a(4), a(4))                                                                   \
    AEGIS_XOR(a(5), a(4), a(4))                                                                   \
    AEGIS_XOR(a(4), b(4), b(4))                                                                   \
    put(a(4), a##_X(4), y)                                                                        \
    "vpand " a(2) "," a(3) "," a(0) "\n\t"                                                        \
    AEGIS_XOR(a(1), a(0), a(0))                                                                   \
    AEGIS_XOR(p, a(6), a(6))                                                                      \
    AEGIS_XOR(a(6), a(0), a(0))                                                                   \
    AEGIS_XOR(a(0), b(0), b(0))                                                                   \
    put(a(0), a##_X(0), x)

/* n bytes, a positive multiple of 128. The state stays in registers, where the caller has it. */
#define AEGIS_RUN(name, BLOCK, put)                                                               \
    INLINE void name(__m256i s[8], uint8_t *dst, const uint8_t *src, size_t n, ahead a) {         \
        register __m256i s0 __asm__("ymm0") = s[0], s1 __asm__("ymm1") = s[1];                    \
        register __m256i s2 __asm__("ymm2") = s[2], s3 __asm__("ymm3") = s[3];                    \
        register __m256i s4 __asm__("ymm4") = s[4], s5 __asm__("ymm5") = s[5];                    \
        register __m256i s6 __asm__("ymm6") = s[6], s7 __asm__("ymm7") = s[7];                    \
        __asm__ volatile(".p2align 6\n"                                                           \
                         "1:\n\t"                                                                 \
                         "prefetcht1 (%[src],%[l2])\n\t"                                           \
                         "prefetcht0 (%[src],%[l1])\n\t"                                           \
                         BLOCK(AEGIS_EVEN, AEGIS_ODD, "(%[src])", "32(%[src])", "0(%[dst])",      \
                               "32(%[dst])", put)                                                 \
                         "prefetcht1 64(%[src],%[l2])\n\t"                                         \
                         "prefetcht0 64(%[src],%[l1])\n\t"                                         \
                         BLOCK(AEGIS_ODD, AEGIS_EVEN, "64(%[src])", "96(%[src])", "64(%[dst])",   \
                               "96(%[dst])", put)                                                 \
                         "sub $-128,%[src]\n\t"                                                   \
                         "sub $-128,%[dst]\n\t"                                                   \
                         "sub $128,%[n]\n\t"                                                      \
                         "jnz 1b\n\t"                                                             \
                         : [src] "+r"(src), [dst] "+r"(dst), [n] "+r"(n), "+x"(s0), "+x"(s1),     \
                           "+x"(s2), "+x"(s3), "+x"(s4), "+x"(s5), "+x"(s6), "+x"(s7)             \
                         : [l1] "r"(a.l1), [l2] "r"(a.l2)                                        \
                         : "memory", "cc", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",    \
                           "xmm14", "xmm15");                                                     \
        s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3, s[4] = s4, s[5] = s5, s[6] = s6, s[7] = s7;   \
    }
/* clang-format on */

AEGIS_RUN(seal_steps, AEGIS_SEAL_BLOCK, AEGIS_PUT)
AEGIS_RUN(seal_steps_around, AEGIS_SEAL_BLOCK, AEGIS_PUT_AROUND)
AEGIS_RUN(open_steps, AEGIS_OPEN_BLOCK, AEGIS_PUT)
AEGIS_RUN(open_steps_around, AEGIS_OPEN_BLOCK, AEGIS_PUT_AROUND)
AEGIS_RUN(open_steps_around_halves, AEGIS_OPEN_BLOCK, AEGIS_PUT_AROUND_HALVES)
AEGIS_RUN(open_steps_nowhere, AEGIS_OPEN_BLOCK, AEGIS_PUT_NOWHERE)

#endif
