/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole pages on 256-bit registers, for processors with sixteen of them (Zen 3, Alder Lake and its
 * successors): tweaks by unaligned loads, twelve vectors in flight, rounds in assembler.
 *
 * What it is built around was measured on Zen 3. Of the instructions that can stand beside
 * saturated AES there, loads (unaligned ones too), blends, xors and ands cost nearly nothing, a
 * shift or a shuffle a fifth of a cycle, whatever crosses 128-bit lanes half a cycle or more, a
 * carry-less product more than one. So tweaks are not computed one from the other; they are looked
 * up:
 *
 * t times x is t shifted left by one bit, with 0x87 added when a one falls out. Let w be t without
 * what the last seven such additions have put into its seven lowest bits for bits that are still
 * to fall out of the top: w = t + f(t >> 121), f(c) = c + (c >> 5) + (c >> 6). Then w moves by one
 * bit for each tweak, without exception (the Fibonacci form of the shift register whose Galois
 * form t is), and all w of a chunk are windows of one string of 384 bits: those of t, t x^128 and
 * t x^256. Eight copies of it, shifted by 0 to 7 bits, have every window at a byte of its own. The
 * top of w is the top of t, so t = w + f(w >> 121), which changes the lowest byte alone: `low`
 * keeps these bytes, each with the one above it, as the blend takes words.
 *
 * The copies are interleaved such that two neighbouring windows, the lanes of one vector, are a
 * load and a blend with another; no access crosses a cache line. The tweaks of one group are made
 * between the rounds of the group before; so are the lowest bytes of the next chunk's tweaks. The
 * last round of a group and the start of the next are interleaved vector by vector: one after the
 * other, they cost a tenth of the time.
 *
 * Eight vectors in flight would fill the AES unit if no other instruction ever took one of its two
 * pipes; twelve leave it slack.
 */
#ifndef CCMEM_XTS_PAGES_VAES256_H
#define CCMEM_XTS_PAGES_VAES256_H

#include <stddef.h>

enum {
    CHUNK_BLOCKS = 256,
    CHUNK_BYTES = CHUNK_BLOCKS * AES_BLOCK,
    /* Ten groups of twelve vectors and one of eight make a chunk. */
    SCRATCH = 512, /* from one group's tweaks to the other's */
    PREFETCH_L2 = 8192,
    PREFETCH_L1 = 1024
};

/* Tweak 8 j + r of a chunk lies in the copy of r, k = 31 - j bytes from its start. */
typedef struct windows {
    _Alignas(64) uint8_t even[4][64]; /* copies 0, 2, 4, 6, from byte 0 */
    uint8_t odd[4][64];               /* copies 1, 3, 5, 7, from byte 16 */
    uint8_t low[4][256];              /* words; an odd tweak's 16 bytes after its neighbour's */
    /* The chunk's last vector: its tweaks, which may be of two pages, and where it is read and
     * written. */
    uint8_t join[32];
    const uint8_t *from;
    uint8_t *to;
} windows;
/* What the assembler counts on. */
_Static_assert(offsetof(windows, odd) == 256 && offsetof(windows, low) == 512, "windows");
_Static_assert(offsetof(windows, join) == 1536 && offsetof(windows, from) == 1568, "windows");
_Static_assert(offsetof(windows, to) == 1576 && sizeof(uint16_t[4]) == 8, "windows");

/* clang-format off: a line of assembler on a line. */
#define LOW_AT(k) (((k) >> 3 & 1) * 128 + ((k) >> 4) * 64 + ((k) & 7) * 2)
#define TURN(n, z) {LOW_AT(28 - 3 * (n)), LOW_AT(27 - 3 * (n)), LOW_AT(26 - 3 * (n)), z}
#define LOW_PART(p, half) ((p) * 64 + (half) * 16)

/* For each group but the last two: where the low words of the next group's tweaks are, and which
 * part of the next chunk's is made. */
static const uint16_t turns[9][4] = {
    TURN(0, LOW_PART(0, 1)), TURN(1, LOW_PART(0, 1)), TURN(2, LOW_PART(1, 1)),
    TURN(3, LOW_PART(2, 1)), TURN(4, LOW_PART(3, 1)), TURN(5, LOW_PART(0, 0)),
    TURN(6, LOW_PART(1, 0)), TURN(7, LOW_PART(2, 0)), TURN(8, LOW_PART(3, 0)),
};

/* f(c) of a byte whose seven upper bits are c: (b >> 1 & 7) + f_high[b >> 4]. */
static const _Alignas(32) uint8_t f_constants[3][32] = {
#define TWICE(...) {__VA_ARGS__, __VA_ARGS__}
    TWICE(7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7),
    TWICE(15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15),
#define F_HIGH(h) ((h) << 3 ^ (h) >> 2 ^ (h) >> 3)
    TWICE(F_HIGH(0), F_HIGH(1), F_HIGH(2), F_HIGH(3), F_HIGH(4), F_HIGH(5), F_HIGH(6), F_HIGH(7),
          F_HIGH(8), F_HIGH(9), F_HIGH(10), F_HIGH(11), F_HIGH(12), F_HIGH(13), F_HIGH(14),
          F_HIGH(15)),
};

/* t as a part of the string. */
INLINE __m128i to_window(__m128i t) {
    __m128i f = _mm_xor_si128(_mm_xor_si128(_mm_srli_epi64(t, 57), _mm_srli_epi64(t, 62)),
                              _mm_srli_epi64(t, 63));
    return _mm_xor_si128(t, _mm_srli_si128(f, 8));
}

/* Both neighbours whose first is in copy 2 p, k bytes from its start, without their low bytes. */
INLINE __m256i window_pair(const windows *w, size_t p, size_t k) {
    return _mm256_blend_epi32(vload(w->even[p] + k), vload(w->odd[p] + k), 0xf0);
}

/* The string of a chunk that starts with t, lowest byte first; returns the start of the next chunk,
 * t x^256. */
INLINE __m128i make_string(uint8_t string[64], __m128i t) {
    __m128i t1 = gf_times_x64(gf_times_x64(t)), t2 = gf_times_x64(gf_times_x64(t1));
    _mm_store_si128((__m128i *)string, to_window(t2));
    _mm_store_si128((__m128i *)string + 1, to_window(t1));
    _mm_store_si128((__m128i *)string + 2, to_window(t));
    return t2;
}

/* Its copies. What is loaded from beyond its end is shifted out, or into a byte that is not used.
 */
INLINE void make_copies(windows *w, const uint8_t string[64]) {
    __m256i a = vload(string), b = vload(string + 8);
    __m128i c = _mm_load_si128((const __m128i *)(string + 32));
    __m128i d = _mm_loadu_si128((const __m128i *)(string + 40));
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) {
        uint8_t *out = r & 1 ? w->odd[r / 2] + 16 : w->even[r / 2];
        vstore(out, _mm256_or_si256(_mm256_srli_epi64(a, 8 - r), _mm256_slli_epi64(b, 56 + r)));
        _mm_store_si128((__m128i *)(out + 32),
                        _mm_or_si128(_mm_srli_epi64(c, 8 - r), _mm_slli_epi64(d, 56 + r)));
    }
}

/* Part of `low`: those of copies 2 p and 2 p + 1, 16 from k on. */
INLINE void make_low(windows *w, size_t p, size_t k) {
    __m256i own = window_pair(w, p, k), above = window_pair(w, p, k + 1);
    __m256i top = window_pair(w, p, k + 15);
    __m256i f = _mm256_and_si256(_mm256_srli_epi16(top, 1), vload(f_constants[0]));
    top = _mm256_and_si256(_mm256_srli_epi16(top, 4), vload(f_constants[1]));
    f = vxor(f, _mm256_shuffle_epi8(vload(f_constants[2]), top));
    own = vxor(own, f);
    vstore(w->low[p] + k * 4, _mm256_unpacklo_epi8(own, above));
    vstore(w->low[p] + k * 4 + 128, _mm256_unpackhi_epi8(own, above));
}

/* The tweaks of vector v of the chunk. */
INLINE __m256i tweak_pair(const windows *w, size_t v) {
    size_t p = v % 4, k = 31 - v / 4;
    return _mm256_blend_epi16(window_pair(w, p, k), vload(w->low[p] + LOW_AT(k)), 0x01);
}

/* ---- the rounds ------------------------------------------------------------------------------ */

/* A line for each step, which clang-format would fill. */
/* clang-format off */
#define X(n) "%%ymm" #n
#define AES4(op, a, b, c, d)                                                                      \
    op " %%ymm12," X(a) "," X(a) "\n\t" op " %%ymm12," X(b) "," X(b) "\n\t"                       \
    op " %%ymm12," X(c) "," X(c) "\n\t" op " %%ymm12," X(d) "," X(d) "\n\t"
#define ROUND_KEY(r) "vbroadcasti128 16*" #r "(%[key]),%%ymm12\n\t"
#define WIDE_ROUND(op, r, A, B, C)                                                                \
    ROUND_KEY(r) AES4(op, 0, 1, 2, 3) A AES4(op, 4, 5, 6, 7) B AES4(op, 8, 9, 10, 11) C
#define NARROW_ROUND(op, r, A, B) ROUND_KEY(r) AES4(op, 0, 1, 2, 3) A AES4(op, 4, 5, 6, 7) B

/* Tweaks of vector 4 j + p of a group: `low` is where its low words are. */
#define MAKE(j, p, s, low)                                                                        \
    "vmovdqu 64*" #p "-" #j s ",%%xmm13\n\t"                                                      \
    "vpblendd $0xf0,256+64*" #p "-" #j s ",%%ymm13,%%ymm13\n\t"                                   \
    "vpblendw $1,512+256*" #p "+" low ",%%ymm13,%%ymm13\n\t"                                      \
    "vmovdqa %%ymm13,32*(4*" #j "+" #p ")(%[made])\n\t"
#define MAKE_OWN(j, p) MAKE(j, p, "(%[s])", "0(%[cur],%[e" #j "])")
#define MAKE_NEXT(j, p, low) MAKE(j, p, "+31(%[next])", low "(%[next])")
#define MAKE_LAST_LOW_0 "2(%[cur])"
#define MAKE_LAST_LOW_1 "0(%[cur])"
#define MAKE_LAST(j, p) MAKE(j, p, "(%[s])", MAKE_LAST_LOW_##j)
#define MAKE_JOIN(i) "vmovdqa 1536(%[cur]),%%ymm13\n\tvmovdqa %%ymm13,32*" #i "(%[made])\n\t"

#define FETCH(i)                                                                                  \
    "prefetcht1 %c[l2]+64*" #i "(%[src])\n\tprefetcht0 %c[l1]+64*" #i "(%[src])\n\t"

/* make_low() in five pieces. */
#define LOW_1                                                                                     \
    "vmovdqu 15(%[next],%[z]),%%xmm14\n\t"                                                        \
    "vpblendd $0xf0,256+15(%[next],%[z]),%%ymm14,%%ymm14\n\t"                                     \
    "vpsrlw $1,%%ymm14,%%ymm15\n\t"
#define LOW_2                                                                                     \
    "vpsrlw $4,%%ymm14,%%ymm14\n\t"                                                               \
    "vpand %[c7],%%ymm15,%%ymm15\n\t"                                                            \
    "vpand %[c15],%%ymm14,%%ymm14\n\t"
#define LOW_3                                                                                     \
    "vmovdqa %[table],%%ymm13\n\t"                                                                \
    "vpshufb %%ymm14,%%ymm13,%%ymm14\n\t"                                                         \
    "vpxor %%ymm14,%%ymm15,%%ymm15\n\t"
#define LOW_4                                                                                     \
    "vmovdqu (%[next],%[z]),%%xmm14\n\t"                                                          \
    "vpblendd $0xf0,256(%[next],%[z]),%%ymm14,%%ymm14\n\t"                                        \
    "vpxor %%ymm14,%%ymm15,%%ymm15\n\t"
#define LOW_5                                                                                     \
    "vmovdqu 1(%[next],%[z]),%%xmm14\n\t"                                                         \
    "vpblendd $0xf0,256+1(%[next],%[z]),%%ymm14,%%ymm14\n\t"                                      \
    "vpunpcklbw %%ymm14,%%ymm15,%%ymm13\n\t"
#define LOW_6                                                                                     \
    "vmovdqa %%ymm13,512(%[next],%[z],4)\n\t"                                                     \
    "vpunpckhbw %%ymm14,%%ymm15,%%ymm13\n\t"                                                      \
    "vmovdqa %%ymm13,512+128(%[next],%[z],4)\n\t"

/* Last round of vector i, and the first of the next group: its tweaks, which were `made`, the
 * source and the first round key. */
#define LAST(op, put, i)                                                                          \
    "vpxor 32*" #i "(%[used]),%%ymm12,%%ymm13\n\t" op "last %%ymm13," X(i) "," X(i) "\n\t"        \
    put " " X(i) ",32*" #i "(%[dst])\n\t"
#define FIRST(i, at, t)                                                                           \
    "vpxor 32*" #i t ",%%ymm14," X(i) "\n\tvpxor " at "+32*" #i "(%[src])," X(i) "," X(i) "\n\t"
#define LAST_FIRST(op, put, i) LAST(op, put, i) FIRST(i, "384", "(%[made])")
/* The same for vector 7 of the last group. */
#define FINAL_FIRST                                                                               \
    "mov 1568(%[cur]),%[e0]\n\tvpxor 32*7(%[made]),%%ymm14,%%ymm7\n\t"                            \
    "vpxor (%[e0]),%%ymm7,%%ymm7\n\t"
#define FINAL_LAST(op, put)                                                                       \
    "mov 1576(%[cur]),%[e0]\n\tvpxor 32*7(%[used]),%%ymm12,%%ymm13\n\t" op                        \
    "last %%ymm13,%%ymm7,%%ymm7\n\t" put " %%ymm7,(%[e0])\n\t"
#define FIRST_KEY "vbroadcasti128 (%[key]),%%ymm14\n\t"

#define TURN_ENDS                                                                                 \
    "add $384,%[src]\n\tadd $384,%[dst]\n\t"                                                      \
    "xor %[scratch],%[used]\n\txor %[scratch],%[made]\n\t"

/* AES-256 has four rounds more, with nothing beside them. */
#define WIDE_MORE_10(op)
#define WIDE_MORE_14(op)                                                                          \
    WIDE_ROUND(op, 10, , , ) WIDE_ROUND(op, 11, , , ) WIDE_ROUND(op, 12, , , )                    \
    WIDE_ROUND(op, 13, , , )
#define NARROW_MORE_10(op)
#define NARROW_MORE_14(op)                                                                        \
    NARROW_ROUND(op, 10, , ) NARROW_ROUND(op, 11, , ) NARROW_ROUND(op, 12, , )                    \
    NARROW_ROUND(op, 13, , )

#define OFFSETS                                                                                   \
    "movzwl (%[turn]),%k[e0]\n\tmovzwl 2(%[turn]),%k[e1]\n\tmovzwl 4(%[turn]),%k[e2]\n\t"         \
    "movzwl 6(%[turn]),%k[z]\n\tadd $8,%[turn]\n\t"

#define CHUNK_ASM(op, put, rounds)                                                                \
    FIRST_KEY                                                                                     \
    FIRST(0, "0", "(%[used])") FIRST(1, "0", "(%[used])") FIRST(2, "0", "(%[used])")              \
    FIRST(3, "0", "(%[used])") FIRST(4, "0", "(%[used])") FIRST(5, "0", "(%[used])")              \
    FIRST(6, "0", "(%[used])") FIRST(7, "0", "(%[used])") FIRST(8, "0", "(%[used])")              \
    FIRST(9, "0", "(%[used])") FIRST(10, "0", "(%[used])") FIRST(11, "0", "(%[used])")            \
    ".p2align 6\n"                                                                                \
    "1:\n\t" OFFSETS                                                                              \
    WIDE_ROUND(op, 1, MAKE_OWN(0, 0), LOW_1, FETCH(0))                                            \
    WIDE_ROUND(op, 2, MAKE_OWN(0, 1), LOW_2, )                                                    \
    WIDE_ROUND(op, 3, MAKE_OWN(0, 2), LOW_3, FETCH(1))                                            \
    WIDE_ROUND(op, 4, MAKE_OWN(0, 3), LOW_4, MAKE_OWN(1, 0))                                      \
    WIDE_ROUND(op, 5, FETCH(2), LOW_5 LOW_6, MAKE_OWN(1, 1))                                      \
    WIDE_ROUND(op, 6, MAKE_OWN(1, 2), FETCH(3), MAKE_OWN(1, 3))                                   \
    WIDE_ROUND(op, 7, MAKE_OWN(2, 0), FETCH(4), MAKE_OWN(2, 1))                                   \
    WIDE_ROUND(op, 8, MAKE_OWN(2, 2), FETCH(5), MAKE_OWN(2, 3))                                   \
    WIDE_ROUND(op, 9, "sub $3,%[s]\n\t", , FIRST_KEY)                                             \
    WIDE_MORE_##rounds(op) ROUND_KEY(rounds)                                                      \
    LAST_FIRST(op, put, 0) LAST_FIRST(op, put, 1) LAST_FIRST(op, put, 2) LAST_FIRST(op, put, 3)   \
    LAST_FIRST(op, put, 4) LAST_FIRST(op, put, 5) LAST_FIRST(op, put, 6) LAST_FIRST(op, put, 7)   \
    LAST_FIRST(op, put, 8) LAST_FIRST(op, put, 9) LAST_FIRST(op, put, 10)                         \
    LAST_FIRST(op, put, 11) TURN_ENDS                                                             \
    "cmp %[end],%[turn]\n\t"                                                                      \
    "jne 1b\n\t"                                                                                  \
    WIDE_ROUND(op, 1, MAKE_LAST(0, 0), , FETCH(0))                                                \
    WIDE_ROUND(op, 2, MAKE_LAST(0, 1), , FETCH(1))                                                \
    WIDE_ROUND(op, 3, MAKE_LAST(0, 2), , FETCH(2))                                                \
    WIDE_ROUND(op, 4, MAKE_LAST(0, 3), , FETCH(3))                                                \
    WIDE_ROUND(op, 5, MAKE_LAST(1, 0), , FETCH(4))                                                \
    WIDE_ROUND(op, 6, MAKE_LAST(1, 1), , FETCH(5))                                                \
    WIDE_ROUND(op, 7, MAKE_LAST(1, 2), , )                                                        \
    WIDE_ROUND(op, 8, MAKE_JOIN(7), , )                                                           \
    WIDE_ROUND(op, 9, , , FIRST_KEY)                                                              \
    WIDE_MORE_##rounds(op) ROUND_KEY(rounds)                                                      \
    LAST_FIRST(op, put, 0) LAST_FIRST(op, put, 1) LAST_FIRST(op, put, 2) LAST_FIRST(op, put, 3)   \
    LAST_FIRST(op, put, 4) LAST_FIRST(op, put, 5) LAST_FIRST(op, put, 6) LAST(op, put, 7)         \
    FINAL_FIRST LAST(op, put, 8) LAST(op, put, 9) LAST(op, put, 10) LAST(op, put, 11) TURN_ENDS   \
    NARROW_ROUND(op, 1, MAKE_NEXT(0, 0, "206"), MAKE_NEXT(0, 1, "206"))                           \
    NARROW_ROUND(op, 2, MAKE_NEXT(0, 2, "206"), FETCH(0))                                         \
    NARROW_ROUND(op, 3, MAKE_NEXT(0, 3, "206"), MAKE_NEXT(1, 0, "204"))                           \
    NARROW_ROUND(op, 4, MAKE_NEXT(1, 1, "204"), FETCH(1))                                         \
    NARROW_ROUND(op, 5, MAKE_NEXT(1, 2, "204"), MAKE_NEXT(1, 3, "204"))                           \
    NARROW_ROUND(op, 6, MAKE_NEXT(2, 0, "202"), FETCH(2))                                         \
    NARROW_ROUND(op, 7, MAKE_NEXT(2, 1, "202"), MAKE_NEXT(2, 2, "202"))                           \
    NARROW_ROUND(op, 8, MAKE_NEXT(2, 3, "202"), FETCH(3))                                         \
    NARROW_ROUND(op, 9, , )                                                                       \
    NARROW_MORE_##rounds(op) ROUND_KEY(rounds)                                                    \
    LAST(op, put, 0) LAST(op, put, 1) LAST(op, put, 2) LAST(op, put, 3)                           \
    LAST(op, put, 4) LAST(op, put, 5) LAST(op, put, 6) FINAL_LAST(op, put)

/* One chunk, its first twelve vectors' tweaks at `used`; leaves those of the next chunk, whose
 * copies are made, at the other place. */
#define CHUNK(op, put, rounds)                                                                    \
    __asm__ volatile(                                                                             \
        CHUNK_ASM(op, put, rounds)                                                                \
        : [src] "+r"(src), [dst] "+r"(dst), [used] "+r"(used), [made] "+r"(made), [s] "+r"(s),    \
          [turn] "+r"(turn), [e0] "=&r"(e0), [e1] "=&r"(e1), [e2] "=&r"(e2), [z] "=&r"(z)         \
        : [key] "r"(key->rk), [cur] "r"(cur), [next] "r"(next), [end] "m"(end),                   \
          [c7] "m"(f_constants[0]), [c15] "m"(f_constants[1]), [table] "m"(f_constants[2]),       \
          [l1] "i"(PREFETCH_L1), [l2] "i"(PREFETCH_L2), [scratch] "i"(SCRATCH)                    \
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
          "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")
/* clang-format on */

INLINE void crypt_chunk(int encrypt, unsigned rounds, const aes_key *key, uint8_t *dst,
                        const uint8_t *src, const windows *cur, windows *next, uint8_t *used,
                        uint8_t *made, int stream) {
    const uint8_t *s = (const uint8_t *)cur + 31 - 3;
    const uint16_t *turn = turns[0], *end = turn + sizeof turns / sizeof turns[0][0];
    size_t e0, e1, e2, z;
    if (encrypt && !stream && rounds == 10)
        CHUNK("vaesenc", "vmovdqu", 10);
    else if (encrypt && !stream)
        CHUNK("vaesenc", "vmovdqu", 14);
    else if (encrypt && rounds == 10)
        CHUNK("vaesenc", "vmovntdq", 10);
    else if (encrypt)
        CHUNK("vaesenc", "vmovntdq", 14);
    else if (!stream && rounds == 10)
        CHUNK("vaesdec", "vmovdqu", 10);
    else if (!stream)
        CHUNK("vaesdec", "vmovdqu", 14);
    else if (rounds == 10)
        CHUNK("vaesdec", "vmovntdq", 10);
    else
        CHUNK("vaesdec", "vmovntdq", 14);
}

/* ---- a call ---------------------------------------------------------------------------------- */

typedef struct scratch {
    _Alignas(2 * SCRATCH) uint8_t tweaks[2][SCRATCH];
    windows w[2];
    uint8_t string[64], last[32];
} scratch;

/* Where a call stands in its tweaks: one chunk after the other, through all its pages. */
typedef struct walk {
    const uint8_t (*t0)[16];
    size_t in_page, chunks_per_page;
    __m128i t; /* what the next chunk of the same page starts with */
    int shift;
} walk;

/* The string of the next chunk; returns the tweak of its first block if that begins a page, else
 * NULL. */
INLINE const uint8_t *next_string(walk *w, uint8_t string[64]) {
    const uint8_t *begins = NULL;
    if (w->in_page++ % w->chunks_per_page == 0) {
        begins = *w->t0++;
        w->t = _mm_loadu_si128((const __m128i *)begins);
        if (w->shift)
            w->t = gf_times_x(w->t);
    }
    w->t = make_string(string, w->t);
    return begins;
}

/* Vectors are laid on the destination's grid, as in crypto/xts/template.h. `shift` is 1 when the
 * first block of the call is taken alone; then the lanes of a vector are tweaks 2 i + 1 and 2 i
 * + 2. While chunk c is encrypted, the tweaks of chunk c + 1 and the string of chunk c + 2 are
 * made. */
INLINE void crypt_pages(int encrypt, unsigned rounds, const xts_key *key, uint8_t *dst,
                        const uint8_t *src, size_t npages, size_t page_size,
                        const uint8_t (*t0)[16], int stream, scratch *work) {
    const aes_key *k = encrypt ? &key->enc : &key->dec;
    size_t chunks = npages * (page_size / CHUNK_BYTES);
    int shift = (uintptr_t)dst % AES_BLOCK == 0 && (uintptr_t)dst % 32 != 0;
    walk at = {.t0 = t0, .chunks_per_page = page_size / CHUNK_BYTES, .shift = shift};
    uint8_t *last = NULL;

    if (shift) {
        VEC x = vload_part(src, 1), t = vload_part(t0[0], 1);
        crypt_vectors(encrypt, rounds, k, &x, &t, 1);
        vstore_part(dst, x, 1);
        src += AES_BLOCK;
        dst += AES_BLOCK;
    }
    memset(work->string, 0, sizeof work->string);
    next_string(&at, work->string);
    make_copies(&work->w[0], work->string);
    for (size_t p = 0; p < 4; p++) {
        make_low(&work->w[0], p, 0);
        make_low(&work->w[0], p, 16);
    }
    for (size_t v = 0; v < 12; v++)
        vstore(work->tweaks[0] + 32 * v, tweak_pair(&work->w[0], v));
    const uint8_t *begins = chunks > 1 ? next_string(&at, work->string) : NULL;
    for (size_t c = 0; c < chunks; c++) {
        windows *cur = &work->w[c & 1], *next = &work->w[~c & 1];
        /* Each of the eleven groups of a chunk takes its tweaks from the other place. */
        uint8_t *used = work->tweaks[c & 1], *made = work->tweaks[~c & 1];
        __m256i join = tweak_pair(cur, 127);
        if (shift && begins)
            join = _mm256_inserti128_si256(join, _mm_loadu_si128((const __m128i *)begins), 1);
        vstore(cur->join, join);
        cur->from = src + CHUNK_BYTES - 32;
        cur->to = dst + CHUNK_BYTES - 32;
        if (c + 1 < chunks) {
            make_copies(next, work->string);
        } else if (shift) { /* nothing may be read or written beyond the first lane */
            vstore(work->last, vload_part(cur->from, 1));
            last = cur->to;
            cur->from = cur->to = work->last;
        }
        if (c + 2 < chunks)
            begins = next_string(&at, work->string);
        crypt_chunk(encrypt, rounds, k, dst, src, cur, next, used, made, stream);
        src += CHUNK_BYTES;
        dst += CHUNK_BYTES;
    }
    if (last)
        vstore_part(last, vload(work->last), 1);
    if (stream)
        _mm_sfence();
}

#endif
