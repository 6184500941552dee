/* SPDX-License-Identifier: Apache-2.0
 *
 * SM4 of the portable tier: constant-time C on bit planes, 32 blocks at a time, no table and no
 * branch that depends on data. Word w of the blocks is eight planes: byte 4 l + b of plane i holds
 * bit i of byte b of this word, of block 4 j + l in its bit j. */
#include "crypto/aes/bitslice.h"
#include "crypto/sm4/maps.h"
#include "crypto/sm4/sm4.h"
#include "crypto/sm4/tweak.h"
#include "memory/secret.h"

#include <string.h>

enum { GROUP = 32, GROUP_BYTES = GROUP * SM4_BLOCK };

typedef bs_word planes[8];
typedef uint32_t words __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

INLINE bs_word splat(uint64_t x) { return (bs_word){x, x}; }

/* q becomes m q + added, in each byte. */
INLINE void map(planes q, const uint8_t columns[8], unsigned added) {
    planes in;
    UNROLL for (int i = 0; i < 8; i++) in[i] = q[i];
    UNROLL for (int i = 0; i < 8; i++) {
        bs_word sum = splat(0 - (uint64_t)(added >> i & 1));
        UNROLL for (int j = 0; j < 8; j++) if (columns[j] >> i & 1) sum ^= in[j];
        q[i] = sum;
    }
}

/* The S-box, by that of AES between two maps. */
INLINE void sub_planes(planes q) {
    map(q, sm4_in, SM4_IN_ADDED);
    bs_sub_planes(q);
    map(q, sm4_out, SM4_OUT_ADDED);
}

CLEAR_REGISTERS void sm4_sub_bytes(uint8_t bytes[SM4_BLOCK]) {
    planes q = {{0}};
    memcpy(&q[0], bytes, SM4_BLOCK);
    bs_transpose(q);
    sub_planes(q);
    bs_transpose(q);
    memcpy(bytes, &q[0], SM4_BLOCK);
    ccmem_wipe(q, sizeof q);
}

/* Byte b of each word takes byte b + n: a rotation by 8 n bits to the left. */
INLINE bs_word rotate(bs_word x, int n) {
    words w = (words)x;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (bs_word)(w >> 8 * n | w << (32 - 8 * n));
#else
    return (bs_word)(w << 8 * n | w >> (32 - 8 * n));
#endif
}

/* x[0] becomes x[4]. With b the S-box's bytes s rotated by two bits, a = s + 4 s without what
 * leaves the byte, and c = a + b<<<16, L of s is c + (b + c)<<<24. */
INLINE void round_of(planes x0, const planes x1, const planes x2, const planes x3,
                     const uint8_t rk[4]) {
    uint32_t word;
    memcpy(&word, rk, sizeof word);
    const bs_word key = (bs_word)(words){word, word, word, word};
    planes t;
    UNROLL for (int i = 0; i < 8; i++) {
        bs_word bit = (key >> i) & splat(UINT64_C(0x0101010101010101));
        t[i] = x1[i] ^ x2[i] ^ x3[i] ^ ((bit << 8) - bit);
    }
    sub_planes(t);
    UNROLL for (int i = 0; i < 8; i++) {
        bs_word b = t[(i + 6) % 8], a = i < 2 ? t[i] : t[i] ^ t[i - 2];
        bs_word c = a ^ rotate(b, 2);
        x0[i] ^= c ^ rotate(b ^ c, 3);
    }
}

/* Word w of 32 blocks, at `text`, become planes, and back. */
INLINE void load(planes q, const uint8_t *text, int w) {
    for (int i = 0; i < GROUP; i++)
        memcpy((uint8_t *)q + 4 * i, text + SM4_BLOCK * i + 4 * w, 4);
    bs_transpose(q);
}

INLINE void store(uint8_t *text, planes q, int w) {
    bs_transpose(q);
    for (int i = 0; i < GROUP; i++)
        memcpy(text + SM4_BLOCK * i + 4 * w, (const uint8_t *)q + 4 * i, 4);
}

/* 32 blocks in place. */
static CLEAR_REGISTERS __attribute__((noinline)) void crypt_planes(const sm4_key *key, int decrypt,
                                                                   planes x[4], uint8_t *text) {
    for (int w = 0; w < 4; w++)
        load(x[w], text, w);
    for (int i = 0; i < SM4_ROUNDS; i += 4)
        for (int j = 0; j < 4; j++) {
            int r = decrypt ? SM4_ROUNDS - 1 - i - j : i + j;
            round_of(x[j], x[(j + 1) % 4], x[(j + 2) % 4], x[(j + 3) % 4], key->rk[r]);
        }
    for (int w = 0; w < 4; w++)
        store(text, x[3 - w], w);
}

/* Everything of one call that must not outlive it. */
typedef struct scratch {
    const sm4_key *key;
    gb_tweak tweak;
    planes x[4];
    uint8_t tweaks[GROUP_BYTES], text[GROUP_BYTES];
} scratch;

static void finish(scratch *s) {
    ccmem_wipe(s, sizeof *s);
    burn_stack();
}

static void blocks(const sm4_key *key, int decrypt, uint8_t *out, const uint8_t *in,
                   size_t nblocks) {
    scratch s = {.key = key};
    for (size_t n; nblocks; nblocks -= n) {
        n = nblocks < GROUP ? nblocks : GROUP;
        copy_secret(s.text, in, n * SM4_BLOCK);
        crypt_planes(key, decrypt, s.x, s.text);
        copy_secret(out, s.text, n * SM4_BLOCK);
        in += n * SM4_BLOCK;
        out += n * SM4_BLOCK;
    }
    finish(&s);
}

/* ---- XTS ------------------------------------------------------------------------------------- */

static const sm4_xts_key *both(const xts_key *key) {
    return (const sm4_xts_key *)(const void *)key;
}

/* Blocks of a data unit, from the one that s->tweak belongs to. In a frame of its own, which
 * burn_stack() reaches. */
static __attribute__((noinline)) void crypt_run(scratch *s, int decrypt, uint8_t *dst,
                                                const uint8_t *src, size_t nblocks) {
    for (size_t n; nblocks; nblocks -= n) {
        n = nblocks < GROUP ? nblocks : GROUP;
        for (size_t i = 0; i < n; i++) {
            gb_store(s->tweaks + i * SM4_BLOCK, s->tweak);
            s->tweak = gb_double(s->tweak);
        }
        for (size_t i = 0; i < n * SM4_BLOCK; i++)
            s->text[i] = src[i] ^ s->tweaks[i];
        crypt_planes(s->key, decrypt, s->x, s->text);
        for (size_t i = 0; i < n * SM4_BLOCK; i++)
            dst[i] = s->text[i] ^ s->tweaks[i];
        src += n * SM4_BLOCK;
        dst += n * SM4_BLOCK;
    }
}

static void crypt_pages(const xts_key *key, int decrypt, uint8_t *dst, const uint8_t *src,
                        size_t npages, size_t page_size, const uint8_t (*t0)[16]) {
    scratch s = {.key = &both(key)->data};
    for (size_t i = 0; i < npages; i++) {
        s.tweak = gb_load(t0[i]);
        crypt_run(&s, decrypt, dst + i * page_size, src + i * page_size, page_size / SM4_BLOCK);
    }
    finish(&s);
}

/* In a frame of its own like crypt_run(). */
static __attribute__((noinline)) void jump(gb_tweak *t, const xts_tweak *t0, size_t n) {
    *t = gb_jump(gb_load((const uint8_t *)t0), n);
}

static void crypt_blocks(const xts_key *key, int decrypt, uint8_t *dst, const uint8_t *src,
                         size_t nblocks, size_t first, xts_tweak t0) {
    scratch s = {.key = &both(key)->data};
    jump(&s.tweak, &t0, first);
    ccmem_wipe(&t0, sizeof t0);
    crypt_run(&s, decrypt, dst, src, nblocks);
    finish(&s);
}

static void tweaks(const xts_key *key, uint8_t (*t0)[16], size_t n) {
    blocks(&both(key)->tweak, 0, *t0, *t0, n);
}

static void seal_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    (void)flags;
    crypt_pages(key, 0, dst, src, npages, page_size, t0);
}

static void open_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    (void)flags;
    crypt_pages(key, 1, dst, src, npages, page_size, t0);
}

static void seal_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0) {
    crypt_blocks(key, 0, dst, src, nblocks, first, t0);
}

static void open_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0) {
    crypt_blocks(key, 1, dst, src, nblocks, first, t0);
}

const sm4_ops sm4_portable = {.blocks = blocks,
                              .xts = {.tweaks = tweaks,
                                      .seal_pages = seal_pages,
                                      .open_pages = open_pages,
                                      .seal_blocks = seal_blocks,
                                      .open_blocks = open_blocks}};
