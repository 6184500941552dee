/* SPDX-License-Identifier: Apache-2.0
 * The AES-XTS kernels of the portable tier: constant-time C for processors without AES
 * instructions, and the reference that every other tier is tested against. */
#include "crypto/gf128/portable.h"
#include "crypto/aes/bitslice.h"
#include "crypto/xts/xts.h"
#include "memory/secret.h"

#include <string.h>

/* Everything of one call that must not outlive it. */
typedef struct scratch {
    const aes_key *key;
    gf128 tweak;
    uint8_t tweaks[BS_BYTES];
    uint8_t text[BS_BYTES];
} scratch;

static void finish(scratch *s) {
    ccmem_wipe(s, sizeof *s);
    burn_stack();
}

static void xor_blocks(uint8_t *out, const uint8_t *a, const uint8_t *b, size_t nblocks) {
    for (size_t i = 0; i < nblocks * AES_BLOCK; i += AES_BLOCK) {
        bs_word x, y;
        memcpy(&x, a + i, AES_BLOCK);
        memcpy(&y, b + i, AES_BLOCK);
        x ^= y;
        memcpy(out + i, &x, AES_BLOCK);
    }
}

/* 1 to 8 blocks of the data unit, from the one that s->tweak belongs to. */
static void crypt_group(scratch *s, int encrypt, uint8_t *dst, const uint8_t *src, size_t nblocks) {
    for (size_t i = 0; i < nblocks; i++) {
        gf128_store(s->tweaks + i * AES_BLOCK, s->tweak);
        s->tweak = gf128_double(s->tweak);
    }
    xor_blocks(s->text, src, s->tweaks, nblocks);
    (encrypt ? bs_encrypt8 : bs_decrypt8)(s->key, s->text, s->text);
    xor_blocks(dst, s->text, s->tweaks, nblocks);
}

/* In a frame of its own, which burn_stack() reaches: compilers keep tweaks there. */
static __attribute__((noinline)) void crypt_run(scratch *s, int encrypt, uint8_t *dst,
                                                const uint8_t *src, size_t nblocks) {
    while (nblocks) {
        size_t n = nblocks < BS_BLOCKS ? nblocks : BS_BLOCKS;
        crypt_group(s, encrypt, dst, src, n);
        dst += n * AES_BLOCK;
        src += n * AES_BLOCK;
        nblocks -= n;
    }
}

static void crypt_pages(const xts_key *key, int encrypt, uint8_t *dst, const uint8_t *src,
                        size_t npages, size_t page_size, const uint8_t (*t0)[16]) {
    scratch s = {.key = &key->enc};
    for (size_t i = 0; i < npages; i++) {
        s.tweak = gf128_load(t0[i]);
        crypt_run(&s, encrypt, dst + i * page_size, src + i * page_size, page_size / AES_BLOCK);
    }
    finish(&s);
}

/* In a frame of its own like crypt_run(). */
static __attribute__((noinline)) void jump(gf128 *t, const xts_tweak *t0, size_t n) {
    *t = gf128_jump(gf128_load((const uint8_t *)t0), n);
}

static void crypt_blocks(const xts_key *key, int encrypt, uint8_t *dst, const uint8_t *src,
                         size_t nblocks, size_t first, xts_tweak t0) {
    scratch s = {.key = &key->enc};
    jump(&s.tweak, &t0, first);
    ccmem_wipe(&t0, sizeof t0);
    crypt_run(&s, encrypt, dst, src, nblocks);
    finish(&s);
}

static void tweaks(const xts_key *key, uint8_t (*t0)[16], size_t n) {
    aes_portable.encrypt(&key->tweak, *t0, *t0, n);
}

static void seal_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    (void)flags;
    crypt_pages(key, 1, dst, src, npages, page_size, t0);
}

static void open_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    (void)flags;
    crypt_pages(key, 0, dst, src, npages, page_size, t0);
}

static void seal_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0) {
    crypt_blocks(key, 1, dst, src, nblocks, first, t0);
}

static void open_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0) {
    crypt_blocks(key, 0, dst, src, nblocks, first, t0);
}

const xts_ops xts_portable = {
    .tweaks = tweaks,
    .seal_pages = seal_pages,
    .open_pages = open_pages,
    .seal_blocks = seal_blocks,
    .open_blocks = open_blocks,
};
