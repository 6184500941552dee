/* SPDX-License-Identifier: Apache-2.0
 *
 * A tweak generator of the 512-bit tier (see crypto/xts/template.h): two chains of doublings, half
 * a chunk apart, in integer registers. AMD's carry-less products run on the two pipes that AES runs
 * on, and its scheduler sends byte shifts and logic there too; the integer units have nothing else
 * to do. On Zen 4, 64 bytes under AES-128 took 11.8 cycles with it and 14.0 with
 * crypto/xts/gen_clmul.h, of 10 that are AES. Two chains, because four doublings of one take as
 * long as the vector that they are for.
 */

enum { CHAIN_BYTES = 128 * AES_BLOCK };

/* The next tweak of both chains, low half first. In memory they would cost a cycle more. */
typedef struct gen {
    uint64_t lo[2], hi[2];
} gen;

INLINE void gen_start(gen *g, v128 t) {
    v128 second = gf_times_x64(gf_times_x64(t));
    g->lo[0] = v128_get64(t, 0);
    g->hi[0] = v128_get64(t, 1);
    g->lo[1] = v128_get64(second, 0);
    g->hi[1] = v128_get64(second, 1);
}

INLINE void gen_step(gen *g, uint8_t *out, unsigned step) {
    /* Volatile: two halves stored as one vector would go through the pipes of AES. */
    typedef uint64_t word __attribute__((may_alias));
    volatile word *to = (volatile word *)(out + (size_t)step * 4 * AES_BLOCK);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, to += 2)
#pragma GCC unroll 2
        for (int chain = 0; chain < 2; chain++) {
            uint64_t carry = g->hi[chain];
            to[chain * (CHAIN_BYTES / 8)] = g->lo[chain];
            to[chain * (CHAIN_BYTES / 8) + 1] = g->hi[chain];
            /* In assembler, since compilers shift 128 bits by SHLD, which is slow on AMD. */
            __asm__("sar $63,%[carry]\n\tand %[remainder],%[carry]\n\t"
                    "add %[lo],%[lo]\n\tadc %[hi],%[hi]\n\txor %[carry],%[lo]"
                    : [lo] "+r"(g->lo[chain]), [hi] "+r"(g->hi[chain]), [carry] "+r"(carry)
                    : [remainder] "i"(GF_REMAINDER)
                    : "cc");
        }
}
