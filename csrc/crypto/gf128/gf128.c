/* SPDX-License-Identifier: Apache-2.0
 * The tables of powers of x. */
#include "crypto/gf128/gf128.h"

#include "crypto/gf128/portable.h"

_Alignas(64) uint64_t gf_power[GF_POWERS][2];
_Alignas(64) uint64_t gf_chunk_power[GF_CHUNKS][2];
_Alignas(64) uint64_t gf_far_power[GF_FAR][2];

/* count powers, `step` doublings apart, from a on. */
static void fill(uint64_t (*out)[2], unsigned count, gf128 a, size_t step) {
    for (unsigned i = 0; i < count; i++) {
        out[i][0] = a.lo;
        out[i][1] = a.hi;
        a = gf128_jump(a, step);
    }
}

void gf128_init(void) {
    const gf128 one = {1, 0};
    fill(gf_power, GF_POWERS, one, 1);
    fill(gf_chunk_power, GF_CHUNKS, one, GF_CHUNK);
    for (unsigned i = 0; i < GF_FAR; i++)
        fill(gf_far_power + i, 1, gf128_jump(one, (size_t)GF_CHUNK * GF_CHUNKS << i), 0);
}
