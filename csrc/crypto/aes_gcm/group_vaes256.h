/* SPDX-License-Identifier: Apache-2.0
 *
 * A group of AES-256-GCM on 256-bit registers, for processors with sixteen of them (Zen 3, Alder
 * Lake and its successors), in assembler, because the order of the instructions is the point and
 * compilers do not keep one.
 *
 * On Zen 3 an AES round takes one slot of two pipes, a carry-less product two of the same, a
 * shuffle two thirds of one, so that 32 bytes take 14 + 6 slots and some: products by sums of
 * halves (Karatsuba) are three in place of four. What hashes the group before is spread between the
 * rounds, which alone would wait for each other. The vector that the sum so far goes into comes
 * last, so that nothing waits for the remainder of the group before.
 */
#ifndef CCMEM_AES_GCM_GROUP_VAES256_H
#define CCMEM_AES_GCM_GROUP_VAES256_H

#include <stddef.h>

/* What the assembler counts on. */
_Static_assert(offsetof(aes_gcm_key, hash) == 256 && offsetof(ghash_key, sum) == 256, "the key");

/* The counters of a group's vectors are those of its first with these added to the last byte of
 * each, but for the last vector: there the byte may overflow. */
#define COUNT(n) 0, 0, 0, (uint32_t)(n) << 24
static const _Alignas(32) uint32_t group_counts[7][8] = {
    {COUNT(0), COUNT(0)}, {COUNT(2), COUNT(2)},   {COUNT(4), COUNT(4)},  {COUNT(6), COUNT(6)},
    {COUNT(8), COUNT(8)}, {COUNT(10), COUNT(10)}, {COUNT(12), COUNT(12)}};
#undef COUNT

/* Groups of a whole page begin with counters 2 + 16 n, where this is so; a part of a page may have
 * others. Counters are no secret. */
INLINE int group_counts_fit(VEC at) { return (uint8_t)v128_get64(vfirst(at), 0) <= 256 - 14; }

typedef struct group_constants {
    _Alignas(32) uint64_t reversed[4], polynomial[4];
} group_constants;
static const group_constants group_of = {{0x08090a0b0c0d0e0f, 0x0001020304050607,
                                          0x08090a0b0c0d0e0f, 0x0001020304050607},
                                         {GHASH_REMAINDER, 0, GHASH_REMAINDER, 0}};

/* clang-format off: a line of assembler on a line. */
#define X(n) "%%ymm" #n
#define KEY(r) "vbroadcasti128 16*" #r "(%[key]),%%ymm8\n\t"
#define TWO(a, b) "vaesenc %%ymm8," X(a) "," X(a) "\n\tvaesenc %%ymm8," X(b) "," X(b) "\n\t"
#define ROUND(r, A, B, C, D) KEY(r) TWO(0, 1) A TWO(2, 3) B TWO(4, 5) C TWO(6, 7) D

#define START(n) "vpaddd 32*" #n "(%[counts]),%%ymm9," X(n) "\n\tvpxor %%ymm8," X(n) "," X(n) "\n\t"

/* Vector v of the group before, in four pieces. */
#define LOAD(v) "vmovdqa 32*" #v "(%[kept]),%%ymm12\n\tvpshufb (%[of]),%%ymm12,%%ymm12\n\t"
#define SUM "vpxor %[sum],%%ymm12,%%ymm12\n\t"
#define HALVES "vpshufd $0x4e,%%ymm12,%%ymm13\n\tvpxor %%ymm12,%%ymm13,%%ymm13\n\t"
#define LOW(v)                                                                                     \
    "vpclmulqdq $0x00,256+32*" #v "(%[key]),%%ymm12,%%ymm14\n\tvpxor %%ymm14,%%ymm9,%%ymm9\n\t"
#define HIGH(v)                                                                                    \
    "vpclmulqdq $0x11,256+32*" #v "(%[key]),%%ymm12,%%ymm12\n\tvpxor %%ymm12,%%ymm11,%%ymm11\n\t"
#define MID(v)                                                                                     \
    "vpclmulqdq $0x00,512+32*" #v "(%[key]),%%ymm13,%%ymm13\n\tvpxor %%ymm13,%%ymm10,%%ymm10\n\t"
#define LOW_1(v) "vpclmulqdq $0x00,256+32*" #v "(%[key]),%%ymm12,%%ymm9\n\t"
#define HIGH_1(v) "vpclmulqdq $0x11,256+32*" #v "(%[key]),%%ymm12,%%ymm11\n\t"
#define MID_1(v) "vpclmulqdq $0x00,512+32*" #v "(%[key]),%%ymm13,%%ymm10\n\t"

/* The remainder, in seven. */
#define REST_1 "vpxor %%ymm9,%%ymm10,%%ymm10\n\tvpxor %%ymm11,%%ymm10,%%ymm10\n\t"
#define REST_2                                                                                     \
    "vpslldq $8,%%ymm10,%%ymm12\n\tvpsrldq $8,%%ymm10,%%ymm10\n\tvpxor %%ymm12,%%ymm9,%%ymm9\n\t"
#define REST_3 "vpclmulqdq $0x00,32(%[of]),%%ymm9,%%ymm12\n\tvpxor %%ymm10,%%ymm11,%%ymm11\n\t"
#define REST_4 "vpshufd $0x4e,%%ymm9,%%ymm9\n\tvpxor %%ymm12,%%ymm9,%%ymm9\n\t"
#define REST_5 REST_3A REST_4
#define REST_3A "vpclmulqdq $0x00,32(%[of]),%%ymm9,%%ymm12\n\t"
#define REST_6 "vpxor %%ymm9,%%ymm11,%%ymm11\n\t"
#define REST_7 "vextracti128 $1,%%ymm11,%%xmm12\n\tvpxor %%xmm12,%%xmm11,%x[sum]\n\t"

#define FETCH(i) "prefetcht1 64*" #i "(%[src],%[l2])\n\tprefetcht0 64*" #i "(%[src],%[l1])\n\t"

/* Keystream meets the text in the last round's key. */
#define SEAL(n, put)                                                                               \
    "vpxor 32*" #n "(%[src]),%%ymm8,%%ymm12\n\tvaesenclast %%ymm12," X(n) "," X(                   \
        n) "\n\t" put(X(n), n) "vmovdqa " X(n) ",32*" #n "(%[kept])\n\t"
#define OPEN(n, put)                                                                               \
    "vmovdqu 32*" #n "(%[src]),%%ymm12\n\tvmovdqa %%ymm12,32*" #n "(%[kept])\n\t"                  \
    "vpxor %%ymm12,%%ymm8,%%ymm12\n\tvaesenclast %%ymm12," X(n) "," X(n) "\n\t" put(X(n), n)
#define PUT(v, n) "vmovdqu " v ",32*" #n "(%[dst])\n\t"
#define PUT_AROUND(v, n) "vmovntdq " v ",32*" #n "(%[dst])\n\t"

#define GROUP(name, DO, put)                                                                       \
    INLINE void name(const aes_gcm_key *key, VEC *at, v128 *sum, uint8_t *dst, const uint8_t *src, \
                     uint8_t *kept, ahead a) {                                                     \
        VEC first = vreverse(*at), last = vreverse(counters_ahead(*at, 7)), s = valone(*sum);      \
        *at = counters_ahead(*at, GCM_GROUP);                                                      \
        __asm__ volatile(                                                                          \
            "vmovdqa %[first],%%ymm9\n\tvmovdqa %[last],%%ymm7\n\t" KEY(0) START(0) START(1)       \
                START(2) START(3) START(4) START(5)                                                \
                    START(6) "vpxor %%ymm8,%%ymm7,%%ymm7\n\t" ROUND(1, LOAD(1), HALVES, LOW_1(1),  \
                                                                    HIGH_1(1))                     \
                        ROUND(2, MID_1(1), LOAD(2), HALVES, LOW(2)) ROUND(3, HIGH(2), FETCH(0),    \
                                                                          MID(2), LOAD(3))         \
                            ROUND(4, HALVES, LOW(3), HIGH(3), MID(3)) ROUND(5, LOAD(4), HALVES,    \
                                                                            LOW(4), HIGH(4))       \
                                ROUND(6, MID(4), FETCH(1), LOAD(5), HALVES)                        \
                                    ROUND(7, LOW(5), HIGH(5), MID(5), LOAD(6))                     \
                                        ROUND(8, HALVES, LOW(6), HIGH(6), MID(6))                  \
                                            ROUND(9, LOAD(7), HALVES FETCH(2), LOW(7), HIGH(7))    \
                                                ROUND(10, MID(7), LOAD(0) SUM, HALVES, LOW(0))     \
                                                    ROUND(11, HIGH(0), MID(0), REST_1, REST_2)     \
                                                        ROUND(12, REST_3, FETCH(3), REST_4, )      \
                                                            ROUND(13, REST_5, , REST_6, REST_7)    \
                                                                KEY(14) DO(0, put) DO(1, put)      \
                                                                    DO(2, put) DO(3, put)          \
                                                                        DO(4, put) DO(5, put)      \
                                                                            DO(6, put) DO(7, put)  \
            : [sum] "+x"(s)                                                                        \
            : [first] "m"(first), [last] "m"(last), [key] "r"(key), [kept] "r"(kept),              \
              [src] "r"(src), [dst] "r"(dst), [counts] "r"(group_counts), [of] "r"(&group_of),     \
              [l1] "r"(a.l1), [l2] "r"(a.l2)                                                       \
            : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",    \
              "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14");                                \
        *sum = vfirst(s);                                                                          \
    }
/* clang-format on */

GROUP(seal_group, SEAL, PUT)
GROUP(seal_group_around, SEAL, PUT_AROUND)
GROUP(open_group, OPEN, PUT)
GROUP(open_group_around, OPEN, PUT_AROUND)
#undef SEAL
#undef OPEN

#endif
