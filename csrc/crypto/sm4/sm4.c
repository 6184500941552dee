/* SPDX-License-Identifier: Apache-2.0
 *
 * Key schedules of SM4 (GB/T 32907-2016, 7.3), in plain constant-time C for every tier. */
#include "crypto/sm4/sm4.h"

#include <string.h>

#include "crypto/sm4/maps.h"
#include "memory/secret.h"

static uint32_t load_word(const uint8_t p[4]) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void store_word(uint8_t p[4], uint32_t w) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(w >> (24 - 8 * i));
}

static uint32_t rotl(uint32_t w, int n) { return w << n | w >> (32 - n); }

static uint32_t all_bytes(uint32_t byte) { return byte * 0x01010101; }

/* A linear map on each byte of a word. */
static uint32_t map(const uint8_t columns[8], uint32_t w) {
    uint32_t sum = 0;
    for (int i = 0; i < 8; i++)
        sum ^= (w >> i & 0x01010101) * columns[i];
    return sum;
}

/* The inverse of L(w) = w ^ w<<<2 ^ w<<<10 ^ w<<<18 ^ w<<<24. L is a polynomial in the rotation r,
 * and its 32nd power is 1, as r^32 is: so this is L^31, multiplied out. */
static uint32_t inverse_of_l(uint32_t w) {
    uint32_t sum = w;
    for (int i = 0; i < (int)sizeof sm4_l_inverse; i++)
        sum ^= rotl(w, sm4_l_inverse[i]);
    return sum;
}

/* The round keys of one direction, for AES instructions. Words are kept as In(x + mask), `In` being
 * the map from SM4's field into that of AES: masks are such that three neighbouring ones add up to
 * the round key and to what the map adds. Then a round adds no key before its S-box, and what is
 * added after it, in the same instruction, mends the mask of the word that it makes. */
static void make_rounds(sm4_rounds *out, const uint8_t (*rk)[4], int backwards) {
    uint32_t mask[SM4_ROUNDS + 4] = {0};

    for (int i = 0; i < SM4_ROUNDS; i++)
        mask[i + 3] = load_word(rk[backwards ? SM4_ROUNDS - 1 - i : i]) ^
                      all_bytes(SM4_IN_ADDED_BEFORE) ^ mask[i + 1] ^ mask[i + 2];
    for (int i = 0; i < SM4_ROUNDS; i++)
        store_word(out->key[i], map(sm4_out_inverse, all_bytes(SM4_OUT_ADDED) ^
                                                         inverse_of_l(mask[i] ^ mask[i + 4])));
    store_word(out->first, mask[3]);
    for (int i = 0; i < 3; i++)
        store_word(out->last[i], mask[SM4_ROUNDS + i]);
    ccmem_wipe(mask, sizeof mask);
}

static uint32_t sub_word(uint32_t w) {
    uint8_t block[SM4_BLOCK] = {0};
    store_word(block, w);
    sm4_sub_bytes(block);
    w = load_word(block);
    ccmem_wipe(block, sizeof block);
    return w;
}

static __attribute__((noinline)) void expand(sm4_key *out, const uint8_t key[SM4_KEY_SIZE]) {
    static const uint32_t fk[4] = {0xa3b1bac6, 0x56aa3350, 0x677d9197, 0xb27022dc};
    uint32_t k[4];

    for (int i = 0; i < 4; i++)
        k[i] = load_word(key + 4 * i) ^ fk[i];
    for (int i = 0; i < SM4_ROUNDS; i++) {
        uint32_t ck = 0, t;
        for (int j = 0; j < 4; j++)
            ck = ck << 8 | ((uint32_t)(4 * i + j) * 7 & 0xff);
        t = sub_word(k[(i + 1) % 4] ^ k[(i + 2) % 4] ^ k[(i + 3) % 4] ^ ck);
        k[i % 4] ^= t ^ rotl(t, 13) ^ rotl(t, 23);
        store_word(out->rk[i], k[i % 4]);
    }
    ccmem_wipe(k, sizeof k);
    make_rounds(&out->enc, (const uint8_t (*)[4])out->rk, 0);
    make_rounds(&out->dec, (const uint8_t (*)[4])out->rk, 1);
}

void sm4_expand(sm4_key *out, const uint8_t key[SM4_KEY_SIZE]) {
    expand(out, key);
    burn_stack();
}

ccmem_status sm4_xts_expand(sm4_xts_key *out, const uint8_t key[2 * SM4_KEY_SIZE]) {
    if (ccmem_equal(key, key + SM4_KEY_SIZE, SM4_KEY_SIZE))
        return CCMEM_ERR_EQUAL_HALVES;
    sm4_expand(&out->data, key);
    sm4_expand(&out->tweak, key + SM4_KEY_SIZE);
    return CCMEM_OK;
}
