/* SPDX-License-Identifier: Apache-2.0
 *
 * The tweak generator of the 128-bit tier (see crypto/xts/template.h): two chains of doublings,
 * half a chunk apart. A doubling is add, compare, shuffle, and, xor: on Zen 3 these cost little
 * beside AES, where a carry-less product would take the AES pipes for two cycles. Two chains,
 * because the latency of one alone (4 to 6 cycles a doubling) would outlast the AES rounds of a
 * group.
 */

enum {
    CHAIN_STEPS = 128,              /* tweaks in one chain */
    CHAIN_STRIDE = CHAIN_STEPS * 16 /* bytes between the chains */
};

typedef struct gen {
    VEC first, second;
} gen;

INLINE VEC vdouble(VEC t) {
    return vxor(vadd64(t, t), vand(vswap64(vnegative64(t)), vwords(1, GF_REMAINDER)));
}

INLINE void gen_start(gen *g, v128 t) {
    g->first = t;
    g->second = gf_times_x64(gf_times_x64(t));
}

INLINE void gen_step(gen *g, uint8_t *out, unsigned step) {
    out += (size_t)step * 16;
    vstore(out, g->first);
    vstore(out + CHAIN_STRIDE, g->second);
    g->first = vdouble(g->first);
    g->second = vdouble(g->second);
}
