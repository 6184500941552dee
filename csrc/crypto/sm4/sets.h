/* SPDX-License-Identifier: Apache-2.0
 *
 * Sets of blocks under SM4, in vectors of any width. A file defines TARGET, includes the vector
 * words of its width (simd/target.h), then crypto/sm4/round_aes.h or round_gfni.h, which give:
 *
 *   SM4_SETS                      sets of blocks in flight, see below; a tier's file defines it
 *   rounds, rounds_of             round keys of one direction
 *   enter, leave                  from words of text to words as rounds keep them, and back
 *   one_round                     a word and the sum of three others become the next word
 *
 * A set is 4 * V_BLOCKS blocks in four vectors, one for each word of a block. A round needs what
 * the round before it made, so one set alone leaves the units of a processor idle for most of the
 * time: SM4_SETS are encrypted together. Not all of their words fit into the 16 registers of
 * processors without AVX-512, and some go through memory. docs/design/sm4.md has the arithmetic. */
#ifndef CCMEM_SM4_SETS_H
#define CCMEM_SM4_SETS_H

enum { SET_BLOCKS = 4 * V_BLOCKS };

/* Four vectors of blocks become four of words, or back: its own inverse. */
INLINE void transpose(VEC x[4]) {
    VEC a = vlow32x2(x[0], x[1]), b = vhigh32x2(x[0], x[1]);
    VEC c = vlow32x2(x[2], x[3]), d = vhigh32x2(x[2], x[3]);
    x[0] = vlow64x2(a, c);
    x[1] = vhigh64x2(a, c);
    x[2] = vlow64x2(b, d);
    x[3] = vhigh64x2(b, d);
}

/* What rounds begin with, of sets of blocks. */
INLINE void begin_sets(int sets, const rounds *r, VEC x[][4], VEC turns[3]) {
    make_turns(turns);
#pragma GCC unroll 4
    for (int s = 0; s < sets; s++) {
        transpose(x[s]);
        enter(x[s], r);
    }
}

/* Where registers are 16, words but the newest one of each set, and constants that instructions
 * take from there, are in memory. Left to itself, a compiler puts the newest there, too: a round
 * then waits for a store and a load of the one before, and takes an eighth more time on Zen 3. */
#if V_BLOCKS < 4
#define IN_MEMORY() __asm__ volatile("" : : : "memory")
#define BY_ADDRESS(p) __asm__ volatile("" : "+r"(p) : : "memory")
#else
#define IN_MEMORY() ((void)0)
#define BY_ADDRESS(p) ((void)0)
#endif

/* Rounds 4 n to 4 n + 3. */
INLINE void four_rounds(int sets, const rounds *r, int n, VEC x[][4], const VEC turns[3]) {
    const uint8_t *key = r->key + 4 * n * r->step;
    const VEC *turn = turns;
    VEC newest[SM4_SETS];
    BY_ADDRESS(x);
    BY_ADDRESS(turn);
#pragma GCC unroll 4
    for (int s = 0; s < sets; s++)
        newest[s] = x[s][3];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const VEC k = vword(key);
        key += r->step;
#pragma GCC unroll 4
        for (int s = 0; s < sets; s++) {
            const VEC sum = vxor(vxor(x[s][(j + 1) % 4], x[s][(j + 2) % 4]), newest[s]);
            x[s][j] = newest[s] = one_round(x[s][j], sum, k, turn);
            IN_MEMORY();
        }
    }
}

INLINE void end_sets(int sets, const rounds *r, VEC x[][4]) {
#pragma GCC unroll 4
    for (int s = 0; s < sets; s++) {
        leave(x[s], r);
        transpose(x[s]);
    }
}

/* Encrypts or decrypts sets of blocks in place. */
INLINE void crypt_sets(int sets, const rounds *r, VEC x[][4]) {
    VEC turns[3];
    begin_sets(sets, r, x, turns);
#pragma GCC unroll 1
    for (int n = 0; n < SM4_ROUNDS / 4; n++)
        four_rounds(sets, r, n, x, turns);
    end_sets(sets, r, x);
}

#endif
