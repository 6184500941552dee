/* SPDX-License-Identifier: Apache-2.0
 *
 * A tweak generator of the 512-bit tier (see crypto/xts/template.h): carry-less products. A step
 * makes two vectors. The first four vectors of the chunk are products with powers of x, the next
 * twelve come from the vector 16 blocks before (a shift by two bytes and what it drops, folded
 * back), the rest from the vector 64 blocks before, where the fold needs no shift. Products and
 * byte shifts go to port 5 of Intel's processors, which AES on 512-bit registers leaves free.
 */

typedef struct gen {
    v128 t;
} gen;

INLINE VEC jump(VEC t, size_t first);

INLINE void gen_start(gen *g, v128 t) { g->t = t; }

INLINE void gen_step(gen *g, uint8_t *out, unsigned step) {
    out += (size_t)step * 128;
    for (int i = 0; i < 2; i++, out += 64) {
        if (step < 2) {
            vstore(out, jump(vlift(g->t), step * 8 + (size_t)i * 4));
        } else if (step < 8) {
            VEC t = vload(out - 256);
            VEC fold = vclmul(vshr_bytes(t, 14), vremainder(), 0x00);
            vstore(out, vxor(vshl_bytes(t, 2), fold));
        } else {
            VEC t = vload(out - 1024);
            vstore(out, vxor(vshl_bytes(t, 8), vclmul(t, vremainder(), 0x01)));
        }
    }
}
