/* SPDX-License-Identifier: Apache-2.0
 * SM4-XTS of single data units, by GB/T 17964-2021 or as in IEEE 1619: these double the tweak in
 * opposite orders of bits. Pages are sealed by the first, so the second has no kernels of its own.
 */
#include <string.h>

#include "crypto/gf128/portable.h"
#include "crypto/sm4/sm4.h"
#include "memory/secret.h"

enum { GROUP = 32 };

typedef struct unit {
    const sm4_ops *ops;
    const sm4_xts_key *key;
    sm4_doubling doubling;
    int decrypt;
    uint8_t t[1][16];
    uint8_t tweaks[GROUP * SM4_BLOCK], text[GROUP * SM4_BLOCK];
} unit;

/* In a frame of its own, which burn_stack() reaches. */
static __attribute__((noinline)) void crypt_ieee(unit *u, uint8_t *out, const uint8_t *in,
                                                 size_t nblocks, size_t first) {
    gf128 t = gf128_jump(gf128_load(*u->t), first);
    for (size_t n; nblocks; nblocks -= n) {
        n = nblocks < GROUP ? nblocks : GROUP;
        for (size_t i = 0; i < n; i++) {
            gf128_store(u->tweaks + i * SM4_BLOCK, t);
            t = gf128_double(t);
        }
        for (size_t i = 0; i < n * SM4_BLOCK; i++)
            u->text[i] = in[i] ^ u->tweaks[i];
        u->ops->blocks(&u->key->data, u->decrypt, u->text, u->text, n);
        for (size_t i = 0; i < n * SM4_BLOCK; i++)
            out[i] = u->text[i] ^ u->tweaks[i];
        in += n * SM4_BLOCK;
        out += n * SM4_BLOCK;
    }
}

static void crypt(unit *u, uint8_t *out, const uint8_t *in, size_t nblocks, size_t first) {
    const xts_ops *xts = &u->ops->xts;
    if (u->doubling == SM4_DOUBLING_IEEE)
        crypt_ieee(u, out, in, nblocks, first);
    else
        (u->decrypt ? xts->open_blocks : xts->seal_blocks)((const void *)u->key, out, in, nblocks,
                                                           first, xts_tweak_load(*u->t));
}

/* The last whole block, number `at`, and the `tail` bytes after it. The two tweaks are used in the
 * order of the blocks when encrypting, the other way round when decrypting. */
static void crypt_stolen(unit *u, uint8_t *out, const uint8_t *in, size_t at, size_t tail) {
    uint8_t full[SM4_BLOCK], mixed[SM4_BLOCK];

    crypt(u, full, in, 1, u->decrypt ? at + 1 : at);
    memcpy(mixed, in + SM4_BLOCK, tail);
    memcpy(mixed + tail, full + tail, SM4_BLOCK - tail);
    memcpy(out + SM4_BLOCK, full, tail);
    crypt(u, out, mixed, 1, u->decrypt ? at : at + 1);
    ccmem_wipe(full, sizeof full);
    ccmem_wipe(mixed, sizeof mixed);
}

void sm4_xts_crypt(const sm4_ops *ops, const sm4_xts_key *key, sm4_doubling doubling, int decrypt,
                   const uint8_t tweak[16], const uint8_t *in, uint8_t *out, size_t n) {
    size_t tail = n % SM4_BLOCK, whole = n / SM4_BLOCK - (tail != 0);
    unit u = {.ops = ops, .key = key, .doubling = doubling, .decrypt = decrypt};

    memcpy(*u.t, tweak, SM4_BLOCK);
    ops->blocks(&key->tweak, 0, *u.t, *u.t, 1);
    if (whole)
        crypt(&u, out, in, whole, 0);
    if (tail)
        crypt_stolen(&u, out + whole * SM4_BLOCK, in + whole * SM4_BLOCK, whole, tail);
    ccmem_wipe(&u, sizeof u);
    burn_stack();
}
