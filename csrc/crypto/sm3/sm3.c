/* SPDX-License-Identifier: Apache-2.0
 * SM3, GB/T 32905-2016; HMAC and key derivation over it. */
#include "crypto/sm3/sm3.h"

#include <string.h>

#include "crypto/mac/kdf.h"
#include "memory/secret.h"

static uint32_t rotl(uint32_t w, int n) { return n ? w << n | w >> (32 - n) : w; }

static uint32_t load_word(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint8_t *store_word(uint8_t *p, uint32_t w) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(w >> (24 - 8 * i));
    return p + 4;
}

static uint32_t p0(uint32_t x) { return x ^ rotl(x, 9) ^ rotl(x, 17); }

static uint32_t p1(uint32_t x) { return x ^ rotl(x, 15) ^ rotl(x, 23); }

/* GB/T 32905, 5.3: the message is expanded to w[0 .. 67], of which w'[j] is w[j] ^ w[j + 4]. */
static __attribute__((noinline)) void compress(uint32_t v[8], const uint8_t block[SM3_BLOCK]) {
    uint32_t w[68], x[8];

    for (int j = 0; j < 16; j++)
        w[j] = load_word(block + 4 * j);
    for (int j = 16; j < 68; j++)
        w[j] = p1(w[j - 16] ^ w[j - 9] ^ rotl(w[j - 3], 15)) ^ rotl(w[j - 13], 7) ^ w[j - 6];
    memcpy(x, v, sizeof x);
    for (int j = 0; j < 64; j++) {
        const int early = j < 16;
        const uint32_t t = early ? 0x79cc4519 : 0x7a879d8a;
        uint32_t a = x[0], b = x[1], c = x[2], e = x[4], f = x[5], g = x[6];
        uint32_t ss1 = rotl(rotl(a, 12) + e + rotl(t, j % 32), 7), ss2 = ss1 ^ rotl(a, 12);
        uint32_t ff = early ? a ^ b ^ c : (a & b) | (a & c) | (b & c);
        uint32_t gg = early ? e ^ f ^ g : (e & f) | (~e & g);
        uint32_t tt1 = ff + x[3] + ss2 + (w[j] ^ w[j + 4]), tt2 = gg + x[7] + ss1 + w[j];
        x[3] = c;
        x[2] = rotl(b, 9);
        x[1] = a;
        x[0] = tt1;
        x[7] = g;
        x[6] = rotl(f, 19);
        x[5] = e;
        x[4] = p0(tt2);
    }
    for (int i = 0; i < 8; i++)
        v[i] ^= x[i];
    ccmem_wipe(w, sizeof w);
    ccmem_wipe(x, sizeof x);
}

void sm3_begin(sm3_state *s) {
    static const uint32_t iv[8] = {0x7380166f, 0x4914b2b9, 0x172442d7, 0xda8a0600,
                                   0xa96f30bc, 0x163138aa, 0xe38dee4d, 0xb0fb0e4e};
    memcpy(s->v, iv, sizeof iv);
    s->n = 0;
}

void sm3_add(sm3_state *s, const uint8_t *data, size_t n) {
    while (n) {
        size_t at = s->n % SM3_BLOCK, take = SM3_BLOCK - at < n ? SM3_BLOCK - at : n;
        copy_secret(s->block + at, data, take);
        s->n += take;
        data += take;
        n -= take;
        if (at + take == SM3_BLOCK)
            compress(s->v, s->block);
    }
}

void sm3_end(sm3_state *s, uint8_t digest[SM3_SIZE]) {
    static const uint8_t padding[SM3_BLOCK] = {0x80};
    const uint64_t bits = 8 * s->n;
    uint8_t length[8];

    store_word(store_word(length, (uint32_t)(bits >> 32)), (uint32_t)bits);
    sm3_add(s, padding, 1 + (SM3_BLOCK - 9 - s->n % SM3_BLOCK + SM3_BLOCK) % SM3_BLOCK);
    sm3_add(s, length, sizeof length);
    for (int i = 0; i < 8; i++)
        store_word(digest + 4 * i, s->v[i]);
    ccmem_wipe(s, sizeof *s);
    burn_stack();
}

/* ---- HMAC ------------------------------------------------------------------------------------ */

static void begin_with_key(sm3_state *s, const uint8_t *key, size_t key_len, uint8_t pad) {
    uint8_t block[SM3_BLOCK];

    for (size_t i = 0; i < SM3_BLOCK; i++)
        block[i] = pad;
    for (size_t i = 0; i < key_len; i++)
        block[i] ^= key[i];
    sm3_begin(s);
    sm3_add(s, block, sizeof block);
    ccmem_wipe(block, sizeof block);
}

void hmac_sm3(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t n,
              uint8_t tag[SM3_SIZE]) {
    uint8_t inner[SM3_SIZE];
    sm3_state s;

    begin_with_key(&s, key, key_len, 0x36);
    sm3_add(&s, msg, n);
    sm3_end(&s, inner);
    begin_with_key(&s, key, key_len, 0x5c);
    sm3_add(&s, inner, sizeof inner);
    sm3_end(&s, tag);
    ccmem_wipe(inner, sizeof inner);
}

/* ---- key derivation -------------------------------------------------------------------------- */

typedef struct hmac_key {
    const uint8_t *key;
    size_t n;
} hmac_key;

static void hmac_prf(const void *key, const uint8_t *msg, size_t n, uint8_t *tag) {
    const hmac_key *k = key;
    hmac_sm3(k->key, k->n, msg, n, tag);
}

void kdf_counter_sm3(const uint8_t *key, size_t key_len, const uint8_t *label, size_t label_len,
                     const uint8_t *context, size_t context_len, uint8_t *out, size_t out_len) {
    const hmac_key both = {key, key_len};
    kdf_counter(hmac_prf, SM3_SIZE, &both, label, label_len, context, context_len, out, out_len);
}
