/* SPDX-License-Identifier: Apache-2.0
 *
 * Key schedules of AES. They are plain constant-time C for every tier: they cost a microsecond for
 * each key, and one path means that every processor's tests cover it.
 */
#include "crypto/aes/aes.h"

#include "crypto/aes/bitslice.h"
#include "memory/secret.h"

#include <string.h>

static void sub_word(uint8_t w[4]) {
    uint8_t block[AES_BLOCK] = {0};
    memcpy(block, w, 4);
    bs_sub_bytes(block);
    memcpy(w, block, 4);
    ccmem_wipe(block, sizeof block);
}

/* FIPS 197, 5.2, figure 11, with Nk = key_len / 4. */
void aes_expand(aes_key *out, const uint8_t *key, size_t key_len) {
    static const uint8_t rcon[] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36};
    unsigned nk = (unsigned)key_len / 4, words = 4 * (nk + 7);
    uint8_t (*w)[4] = (uint8_t (*)[4])out->rk, t[4];

    out->rounds = nk + 6;
    copy_secret(w, key, key_len);
    for (unsigned i = nk; i < words; i++) {
        memcpy(t, w[i - 1], 4);
        if (i % nk == 0) {
            uint8_t first = t[0];
            t[0] = t[1];
            t[1] = t[2];
            t[2] = t[3];
            t[3] = first;
            sub_word(t);
            t[0] ^= rcon[i / nk - 1];
        } else if (nk > 6 && i % nk == 4) {
            sub_word(t);
        }
        for (int j = 0; j < 4; j++)
            w[i][j] = w[i - nk][j] ^ t[j];
    }
    ccmem_wipe(t, sizeof t);
    burn_stack();
}

/* Four bytes times x modulo x^8 + x^4 + x^3 + x + 1. */
static uint32_t times_x(uint32_t a) { return (a & 0x7f7f7f7f) << 1 ^ (a >> 7 & 0x01010101) * 0x1b; }

static uint32_t rotr(uint32_t a, int n) { return a >> n | a << (32 - n); }

/* One column, row 0 in the lowest byte: (02 03 01 01) times (05 00 04 00) is (0e 0b 0d 09). */
static uint32_t inv_mix_column(uint32_t a) {
    uint32_t b = a ^ times_x(times_x(a ^ rotr(a, 16)));
    uint32_t s = b ^ rotr(b, 8);
    return times_x(s) ^ rotr(b, 8) ^ rotr(s, 16);
}

void aes_invert(aes_key *out, const aes_key *enc) {
    out->rounds = enc->rounds;
    for (uint32_t r = 0; r <= enc->rounds; r++) {
        const uint8_t *from = enc->rk[enc->rounds - r];
        uint8_t *to = out->rk[r];
        int outer = r == 0 || r == enc->rounds;
        for (int i = 0; i < AES_BLOCK; i += 4) {
            uint32_t a = from[i] | (uint32_t)from[i + 1] << 8 | (uint32_t)from[i + 2] << 16 |
                         (uint32_t)from[i + 3] << 24;
            if (!outer)
                a = inv_mix_column(a);
            for (int j = 0; j < 4; j++)
                to[i + j] = (uint8_t)(a >> 8 * j);
        }
    }
}
