/* SPDX-License-Identifier: Apache-2.0
 * SM4 of a tier, with SM4-XTS and SM3: published vectors first, then pseudo-random text against the
 * portable tier, which is tested against XTS as it is defined. */
#include <stdlib.h>
#include <string.h>

#include "crypto/sm3/sm3.h"
#include "crypto/sm4/sm4.h"
#include "crypto/sm4/tweak.h"
#include "selftest/selftest.h"

enum { BLOCKS = 77, PAGE = 8192, PAGES = 2, TEXT = PAGE * PAGES, SLACK = 64 };

typedef struct room {
    sm4_key key;
    sm4_xts_key both;
    uint8_t t0[PAGES][16];
    _Alignas(64) uint8_t plain[TEXT], sealed[TEXT], got[TEXT + SLACK];
} room;

/* GB/T 32907-2016, A.1: the key is the text; more blocks than a kernel takes at a time. */
static int check_blocks(const sm4_ops *ops, room *r) {
    static const uint8_t text[16] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
                                     0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};
    static const uint8_t sealed[16] = {0x68, 0x1e, 0xdf, 0x34, 0xd2, 0x06, 0x96, 0x5e,
                                       0x86, 0xb3, 0xe9, 0x4f, 0x53, 0x6e, 0x42, 0x46};
    int good = 1;

    sm4_expand(&r->key, text);
    for (int i = 0; i < BLOCKS; i++)
        memcpy(r->got + 1 + 16 * i, text, sizeof text);
    ops->blocks(&r->key, 0, r->got + 1, r->got + 1, BLOCKS);
    for (int i = 0; i < BLOCKS; i++)
        good &= selftest_same(r->got + 1 + 16 * i, sealed, sizeof sealed);
    selftest_fill(r->plain, sizeof r->plain, 4);
    sm4_portable.blocks(&r->key, 0, r->sealed, r->plain, BLOCKS);
    ops->blocks(&r->key, 0, r->got, r->plain, BLOCKS);
    good &= selftest_same(r->got, r->sealed, 16 * BLOCKS);
    ops->blocks(&r->key, 1, r->got, r->sealed, BLOCKS);
    return good && selftest_same(r->got, r->plain, 16 * BLOCKS);
}

/* GB/T 17964-2021, as OpenSSL's test data have it, with a stolen part of a block; and the same text
 * with the tweaks of IEEE 1619. */
static int check_units(const sm4_ops *ops, room *r) {
    static const uint8_t key[32] = {0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6,
                                    0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c,
                                    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07,
                                    0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f};
    static const uint8_t tweak[16] = {0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7,
                                      0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff};
    static const uint8_t text[56] = {0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d,
                                     0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a, 0xae, 0x2d, 0x8a, 0x57,
                                     0x1e, 0x03, 0xac, 0x9c, 0x9e, 0xb7, 0x6f, 0xac, 0x45, 0xaf,
                                     0x8e, 0x51, 0x30, 0xc8, 0x1c, 0x46, 0xa3, 0x5c, 0xe4, 0x11,
                                     0xe5, 0xfb, 0xc1, 0x19, 0x1a, 0x0a, 0x52, 0xef, 0xf6, 0x9f,
                                     0x24, 0x45, 0xdf, 0x4f, 0x9b, 0x17};
    static const uint8_t sealed[2][56] = {
        {0xe9, 0x53, 0x82, 0x51, 0xc7, 0x1d, 0x7b, 0x80, 0xbb, 0xe4, 0x48, 0x3f, 0xef, 0x49,
         0x7b, 0xd1, 0x2c, 0x5c, 0x58, 0x1b, 0xd6, 0x24, 0x2f, 0xc5, 0x1e, 0x08, 0x96, 0x4f,
         0xb4, 0xf6, 0x0f, 0xdb, 0x0b, 0xa4, 0x2f, 0x63, 0x49, 0x92, 0x79, 0x21, 0x3d, 0x31,
         0x8d, 0x2c, 0x11, 0xf6, 0x88, 0x6e, 0x90, 0x3b, 0xe7, 0xf9, 0x3a, 0x1b, 0x34, 0x79},
        {0xe9, 0x53, 0x82, 0x51, 0xc7, 0x1d, 0x7b, 0x80, 0xbb, 0xe4, 0x48, 0x3f, 0xef, 0x49,
         0x7b, 0xd1, 0xb3, 0xdb, 0x1a, 0x3e, 0x60, 0x40, 0x8c, 0x57, 0x5d, 0x63, 0xff, 0x7d,
         0xb3, 0x9f, 0x83, 0x26, 0x08, 0x69, 0xf9, 0xe2, 0x58, 0x5f, 0xec, 0x9f, 0x0b, 0x86,
         0x3b, 0xf8, 0xfd, 0x78, 0x4b, 0x86, 0x27, 0xd1, 0x6c, 0x0d, 0xb6, 0xd2, 0xcf, 0xc7}};
    int good = sm4_xts_expand(&r->both, key) == CCMEM_OK;

    for (int ieee = 0; ieee < 2; ieee++) {
        sm4_xts_crypt(ops, &r->both, (sm4_doubling)ieee, 0, tweak, text, r->got, sizeof text);
        good &= selftest_same(r->got, sealed[ieee], sizeof text);
        sm4_xts_crypt(ops, &r->both, (sm4_doubling)ieee, 1, tweak, r->got, r->got, sizeof text);
        good &= selftest_same(r->got, text, sizeof text);
    }
    return good;
}

/* XTS as it is defined, in r->sealed. */
static void seal_by_definition(room *r) {
    for (int p = 0; p < PAGES; p++) {
        gb_tweak t = gb_load(r->t0[p]);
        for (int at = p * PAGE; at < (p + 1) * PAGE; at += SM4_BLOCK) {
            gb_store(r->sealed + at, t);
            t = gb_double(t);
        }
    }
    memcpy(r->got, r->sealed, TEXT);
    for (int i = 0; i < TEXT; i++)
        r->sealed[i] ^= r->plain[i];
    sm4_portable.blocks(&r->both.data, 0, r->sealed, r->sealed, TEXT / SM4_BLOCK);
    for (int i = 0; i < TEXT; i++)
        r->sealed[i] ^= r->got[i];
}

/* Runs of blocks: single ones, rests of every width, from the middle of a page. */
static int check_runs(const xts_ops *ops, room *r) {
    static const uint16_t runs[][2] = {{0, 1},    {1, 3},    {7, 4},   {13, 16}, {31, 33},
                                       {60, 129}, {249, 12}, {300, 7}, {511, 1}};
    const xts_key *key = (const void *)&r->both;
    const xts_tweak t0 = xts_tweak_load(r->t0[0]);
    int good = 1;

    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        size_t first = runs[i][0], at = first * SM4_BLOCK, size = runs[i][1] * SM4_BLOCK;
        uint8_t *got = r->got + i % 5;
        memset(got, 0x5a, size + 1);
        ops->seal_blocks(key, got, r->plain + at, runs[i][1], first, t0);
        good &= selftest_same(got, r->sealed + at, size) && got[size] == 0x5a;
        ops->open_blocks(key, got, got, runs[i][1], first, t0);
        good &= selftest_same(got, r->plain + at, size) && got[size] == 0x5a;
    }
    return good;
}

static int check_pages(const xts_ops *ops, room *r) {
    const xts_key *key = (const void *)&r->both;
    const uint8_t (*t0)[16] = (const uint8_t (*)[16])r->t0;
    uint8_t raw[32], *got = r->got + 3;
    int good;

    selftest_fill(raw, sizeof raw, 44);
    selftest_fill(*r->t0, sizeof r->t0, 45);
    good = sm4_xts_expand(&r->both, raw) == CCMEM_OK;
    memcpy(r->got, r->t0, sizeof r->t0);
    sm4_portable.blocks(&r->both.tweak, 0, r->got, r->got, PAGES);
    ops->tweaks(key, r->t0, PAGES);
    good &= selftest_same(r->got, r->t0, sizeof r->t0);
    seal_by_definition(r);
    memset(r->got, 0x5a, sizeof r->got);
    ops->seal_pages(key, got, r->plain, PAGES, PAGE, t0, 0);
    good &= selftest_same(got, r->sealed, TEXT) && got[-1] == 0x5a && got[TEXT] == 0x5a;
    ops->open_pages(key, got, got, PAGES, PAGE, t0, XTS_STREAM);
    good &= selftest_same(got, r->plain, TEXT) && got[-1] == 0x5a && got[TEXT] == 0x5a;
    return good && check_runs(ops, r);
}

/* GB/T 32905-2016, A.1: "abc"; and that text in HMAC and key derivation, as OpenSSL has them. */
static int check_sm3(void) {
    static const uint8_t expected[SM3_SIZE] = {0x66, 0xc7, 0xf0, 0xf4, 0x62, 0xee, 0xed, 0xd9,
                                               0xd1, 0xf2, 0xd4, 0x6b, 0xdc, 0x10, 0xe4, 0xe2,
                                               0x41, 0x67, 0xc4, 0x87, 0x5c, 0xf2, 0xf7, 0xa2,
                                               0x29, 0x7d, 0xa0, 0x2b, 0x8f, 0x4b, 0xa8, 0xe0};
    static const uint8_t derived[20] = {0x93, 0x54, 0x23, 0x23, 0x09, 0x3a, 0x31, 0x20, 0x1e, 0x42,
                                        0x3f, 0x33, 0xe0, 0xe0, 0xdb, 0x56, 0xd3, 0x3a, 0x73, 0x12};
    const uint8_t *text = (const uint8_t *)"abc";
    uint8_t digest[SM3_SIZE], out[sizeof derived];
    sm3_state s;

    sm3_begin(&s);
    sm3_add(&s, text, 3);
    sm3_end(&s, digest);
    kdf_counter_sm3(text, 3, text, 3, text, 3, out, sizeof out);
    return selftest_same(digest, expected, sizeof digest) &&
           selftest_same(out, derived, sizeof out);
}

ccmem_status selftest_sm4(const sm4_ops *ops) {
    room *r;
    if (posix_memalign((void **)&r, 64, sizeof *r))
        return CCMEM_ERR_NOMEM;
    int good =
        check_blocks(ops, r) && check_units(ops, r) && check_pages(&ops->xts, r) && check_sm3();
    free(r);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
