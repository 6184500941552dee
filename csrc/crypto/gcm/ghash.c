/* SPDX-License-Identifier: Apache-2.0
 *
 * GHASH in constant-time C, for the portable tier and for the keys of all tiers.
 *
 * Carry-less products by those of integers: each operand is cut into four, of every fourth bit, so
 * that no column of a product sums up more than fifteen bits below bit 64 but for the top one,
 * whose carry leaves the word; carries fall into the bits between, which are masked away. (T.
 * Pornin describes the method with BearSSL's GHASH.) */
#include "crypto/gcm/ghash.h"

#include "memory/secret.h"

typedef struct element {
    uint64_t lo, hi;
} element;

static uint64_t load_be64(const uint8_t *p) {
    uint64_t x = 0;
    for (int i = 0; i < 8; i++)
        x = x << 8 | p[i];
    return x;
}

static void store_be64(uint8_t *p, uint64_t x) {
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(x >> (56 - 8 * i));
}

static void store_le64(uint8_t *p, uint64_t x) {
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

static uint64_t load_le64(const uint8_t *p) {
    uint64_t x = 0;
    for (int i = 7; i >= 0; i--)
        x = x << 8 | p[i];
    return x;
}

/* A block with its bytes reversed. */
static element reversed(const uint8_t block[GHASH_BLOCK]) {
    return (element){load_be64(block + 8), load_be64(block)};
}

/* The lower 64 bits of a carry-less product. */
static uint64_t low_product(uint64_t a, uint64_t b) {
    const uint64_t mask = UINT64_C(0x1111111111111111);
    uint64_t sum = 0;

    for (int k = 0; k < 4; k++) {
        uint64_t part = 0;
        for (int i = 0; i < 4; i++) {
            const int j = (k - i) & 3;
            part ^= (a & mask << i) * (b & mask << j);
        }
        sum |= part & mask << k;
    }
    return sum;
}

static uint64_t reversed_bits(uint64_t x) {
    static const uint64_t masks[] = {UINT64_C(0x5555555555555555), UINT64_C(0x3333333333333333),
                                     UINT64_C(0x0f0f0f0f0f0f0f0f), UINT64_C(0x00ff00ff00ff00ff),
                                     UINT64_C(0x0000ffff0000ffff), UINT64_C(0x00000000ffffffff)};
    for (int i = 0; i < 6; i++)
        x = (x & masks[i]) << (1 << i) | (x >> (1 << i) & masks[i]);
    return x;
}

/* All 127 bits: the upper ones are the lower ones of the product of the operands reversed. */
static element product(uint64_t a, uint64_t b) {
    return (element){low_product(a, b),
                     reversed_bits(low_product(reversed_bits(a), reversed_bits(b))) >> 1};
}

/* RFC 8452, 3: dot(a, b), the product divided by x^128. */
static element dot(element a, element b) {
    element low = product(a.lo, b.lo), high = product(a.hi, b.hi);
    element mid = product(a.lo ^ a.hi, b.lo ^ b.hi);
    uint64_t v0 = low.lo, v1 = low.hi ^ mid.lo ^ low.lo ^ high.lo;
    uint64_t v2 = high.lo ^ mid.hi ^ low.hi ^ high.hi, v3 = high.hi;

    v1 ^= v0 << 63 ^ v0 << 62 ^ v0 << 57;
    v2 ^= v0 ^ v0 >> 1 ^ v0 >> 2 ^ v0 >> 7;
    v2 ^= v1 << 63 ^ v1 << 62 ^ v1 << 57;
    v3 ^= v1 ^ v1 >> 1 ^ v1 >> 2 ^ v1 >> 7;
    return (element){v2, v3};
}

/* In frames of their own, which burn_stack() reaches. */
static __attribute__((noinline)) void expand(ghash_key *out, const uint8_t h[GHASH_BLOCK]) {
    element a = reversed(h), power;
    const uint64_t top = 0 - (a.hi >> 63);

    /* RFC 8452, appendix A: times x. */
    a = (element){(a.lo << 1) ^ (top & 1), (a.hi << 1 | a.lo >> 63) ^ (top & GHASH_REMAINDER)};
    power = a;
    for (int i = GHASH_POWERS; i--; power = dot(power, a)) {
        store_le64(out->power[i], power.lo);
        store_le64(out->power[i] + 8, power.hi);
        store_le64(out->sum[i], power.lo ^ power.hi);
        store_le64(out->sum[i] + 8, power.lo ^ power.hi);
    }
}

void ghash_expand(ghash_key *out, const uint8_t h[GHASH_BLOCK]) {
    expand(out, h);
    burn_stack();
}

__attribute__((noinline)) void ghash_blocks(const ghash_key *key, uint8_t sum[GHASH_BLOCK],
                                            const uint8_t *data, size_t nblocks) {
    const uint8_t *p = key->power[GHASH_POWERS - 1];
    const element h = {load_le64(p), load_le64(p + 8)};
    element y = reversed(sum);

    for (; nblocks; nblocks--, data += GHASH_BLOCK) {
        const element x = reversed(data);
        y = dot((element){y.lo ^ x.lo, y.hi ^ x.hi}, h);
    }
    store_be64(sum, y.hi);
    store_be64(sum + 8, y.lo);
}

void ghash_lengths(uint8_t out[GHASH_BLOCK], uint64_t ad_len, uint64_t text_len) {
    store_be64(out, 8 * ad_len);
    store_be64(out + 8, 8 * text_len);
}
