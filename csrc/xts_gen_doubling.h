/* SPDX-License-Identifier: Apache-2.0
 *
 * The tweak generator of the 128- and 256-bit tiers (see xts_template.h): parallel chains of
 * doublings that start a fraction of a chunk apart, one chain in each 128-bit lane of two vectors.
 * A doubling is add, compare, shuffle, and, xor: on Zen 3 these go to the pipes that AES does not
 * use, where a carry-less product would take the AES pipes for two cycles. Two vectors, because
 * the latency of one chain alone (4 to 6 cycles a doubling) would outlast the AES rounds of a group.
 *
 * Needs VEC, LANES, vxor, TARGET and: vdouble_carry(t), all ones in every 64-bit half whose top bit
 * is set, halves swapped; vadd64; vand; vcarry(), the constant {GF_REMAINDER, 1} in every lane;
 * vlanes(lo, hi), a vector of these LANES starting points; vstore_lanes(out, v, stride), lane l
 * stored to out + l * stride.
 */

enum {
    CHAIN_STEPS = 256 / (2 * LANES),     /* tweaks in one chain */
    CHAIN_STRIDE = CHAIN_STEPS * 16,     /* bytes between the chains of the two vectors */
};

typedef struct gen {
    VEC even, odd;
} gen;

static inline __attribute__((always_inline)) TARGET VEC vdouble(VEC t) {
    return vxor(vadd64(t, t), vand(vdouble_carry(t), vcarry()));
}

static inline __attribute__((always_inline)) TARGET void gen_start(gen *g, __m128i t) {
    __m128i t64 = gf_times_x64(t), t128 = gf_times_x64(t64);
    if (LANES == 1) {
        g->even = vlanes(t, t);
        g->odd = vlanes(t128, t128);
    } else {
        g->even = vlanes(t, t128);
        g->odd = vlanes(t64, gf_times_x64(t128));
    }
}

static inline __attribute__((always_inline)) TARGET void gen_step(gen *g, uint8_t *out,
                                                                  unsigned step) {
    out += (size_t)step * 16;
    vstore_lanes(out, g->even, 2 * CHAIN_STRIDE);
    vstore_lanes(out + CHAIN_STRIDE, g->odd, 2 * CHAIN_STRIDE);
    g->even = vdouble(g->even);
    g->odd = vdouble(g->odd);
}
