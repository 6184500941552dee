/* SPDX-License-Identifier: Apache-2.0
 * What AES-XTS needs beside the kernels: keys, and ciphertext stealing (IEEE 1619-2018, 5.3
 * and 5.4).
 */
#include "crypto/xts/xts.h"

#include "crypto/gf128/portable.h"
#include "memory/secret.h"

#include <string.h>

ccmem_status xts_expand(xts_key *out, const uint8_t *key, size_t key_len) {
    size_t half = key_len / 2;

    if (key_len != 32 && key_len != 64)
        return CCMEM_ERR_ARGUMENT;
    if (ccmem_equal(key, key + half, half))
        return CCMEM_ERR_EQUAL_HALVES;
    aes_expand(&out->enc, key, half);
    aes_invert(&out->dec, &out->enc);
    aes_expand(&out->tweak, key + half, half);
    return CCMEM_OK;
}

typedef struct unit {
    const xts_key *key;
    void (*blocks)(const xts_key *, uint8_t *, const uint8_t *, size_t, size_t, xts_tweak);
    size_t done; /* blocks of the data unit before the one that `t` belongs to */
    uint8_t t[1][16];
} unit;

/* Whole blocks from the start of the data unit. The kernels reach 2^20 blocks from their t0, so
 * longer data units move t0 on; two blocks for the stealing are always left within reach. */
static void crypt_whole(unit *u, uint8_t *out, const uint8_t *in, size_t nblocks) {
    const size_t reach = (size_t)1 << 19;

    for (;;) {
        size_t left = nblocks - u->done, n = left < reach ? left : reach;
        if (n)
            u->blocks(u->key, out + u->done * AES_BLOCK, in + u->done * AES_BLOCK, n, 0,
                      xts_tweak_load(*u->t));
        if (left <= reach)
            return;
        gf128_store(*u->t, gf128_jump(gf128_load(*u->t), n));
        u->done += n;
    }
}

/* The last whole block and the `tail` bytes after it. `whole` counts the blocks before. The two
 * tweaks are used in the order of the blocks when encrypting, the other way round when
 * decrypting. */
static void crypt_stolen(const unit *u, int encrypt, uint8_t *out, const uint8_t *in, size_t whole,
                         size_t tail) {
    size_t at = whole - u->done;
    uint8_t full[AES_BLOCK], mixed[AES_BLOCK];

    /* The tweak is loaded for each call, since it would wait for the second one on the stack. */
    u->blocks(u->key, full, in, 1, encrypt ? at : at + 1, xts_tweak_load(*u->t));
    memcpy(mixed, in + AES_BLOCK, tail);
    memcpy(mixed + tail, full + tail, AES_BLOCK - tail);
    memcpy(out + AES_BLOCK, full, tail);
    u->blocks(u->key, out, mixed, 1, encrypt ? at + 1 : at, xts_tweak_load(*u->t));
    ccmem_wipe(full, sizeof full);
    ccmem_wipe(mixed, sizeof mixed);
}

void xts_crypt(const xts_ops *ops, const xts_key *key, int encrypt, const uint8_t tweak[16],
               const uint8_t *in, uint8_t *out, size_t n) {
    size_t tail = n % AES_BLOCK, whole = n / AES_BLOCK - (tail != 0);
    unit u = {.key = key, .blocks = encrypt ? ops->seal_blocks : ops->open_blocks, .done = 0};

    memcpy(*u.t, tweak, AES_BLOCK);
    ops->tweaks(key, u.t, 1);
    crypt_whole(&u, out, in, whole);
    if (tail)
        crypt_stolen(&u, encrypt, out + whole * AES_BLOCK, in + whole * AES_BLOCK, whole, tail);
    ccmem_wipe(&u, sizeof u);
}
