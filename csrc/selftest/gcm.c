/* SPDX-License-Identifier: Apache-2.0
 * The part of the self-tests of GCM that is the same for all ciphers: messages, then pseudo-random
 * pages against the portable tier. */
#include "selftest/gcm.h"

#include <stdlib.h>
#include <string.h>

#include "selftest/selftest.h"

int selftest_gcm_message(const gcm_ops *ops, const void *key, const selftest_gcm_vector *v) {
    const gcm_message m = {ops, key, v->iv, v->ad, v->iv_len, v->ad_len};
    uint8_t data[sizeof v->plain], tag[GCM_TAG_SIZE];
    int good;

    gcm_seal_message(&m, v->plain, data, v->n, tag, sizeof tag);
    good = selftest_same(data, v->sealed, v->n) && selftest_same(tag, v->tag, sizeof tag);
    good &= gcm_open_message(&m, data, data, v->n, tag, sizeof tag) == CCMEM_OK;
    good &= selftest_same(data, v->plain, v->n);
    tag[15] ^= 1;
    good &= gcm_open_message(&m, v->sealed, data, v->n, tag, sizeof tag) == CCMEM_ERR_INTEGRITY;
    return good && selftest_zero(data, v->n);
}

enum {
    SMALL_PAGE = 4096,
    SMALL_PAGES = 4,
    PAGES = SMALL_PAGES + 2, /* the last ones are large, and no whole groups */
    LARGE_PAGE = 8192,
    ODD_PAGE = 13 * GCM_UNIT,
    LARGE_AT = SMALL_PAGE * SMALL_PAGES,
    ODD_AT = LARGE_AT + LARGE_PAGE,
    TEXT = ODD_AT + ODD_PAGE,
    SLACK = 64
};

typedef struct pages {
    const gcm_ops *ops;
    const void *key;
    gcm_place place[PAGES];
    uint8_t tag[PAGES][16];
    _Alignas(64) uint8_t plain[TEXT], sealed[TEXT], got[TEXT + SLACK];
} pages;

#define TAGS(p) ((const uint8_t (*)[16])(p)->tag)

static size_t size_of(size_t i) {
    return i < SMALL_PAGES ? SMALL_PAGE : i == SMALL_PAGES ? LARGE_PAGE : ODD_PAGE;
}

static size_t place_of(size_t i) { return i <= SMALL_PAGES ? i * SMALL_PAGE : ODD_AT; }

/* As messages, which the published vectors test. */
static int prepare(pages *p, const gcm_ops *portable) {
    int good = 1;

    selftest_fill((uint8_t *)p->place, sizeof p->place, 2);
    selftest_fill(p->plain, sizeof p->plain, 3);
    for (size_t i = 0; i < PAGES; i++) {
        const gcm_message m = {portable,       p->key,         p->place[i].nonce,
                               p->place[i].ad, GCM_NONCE_SIZE, GCM_BLOCK};
        memset(p->place[i].unused, 0, sizeof p->place[i].unused);
        gcm_seal_message(&m, p->plain + place_of(i), p->sealed + place_of(i), size_of(i), p->tag[i],
                         16);
    }
    /* And these by the tier itself, with a nonce that is hashed, and ends within a block. */
    for (size_t n = 990; n < 1010; n++) {
        const gcm_message m = {p->ops, p->key, p->plain, p->sealed, n, n / 3};
        const gcm_message as = {portable, p->key, p->plain, p->sealed, n, n / 3};
        uint8_t tags[2][16];
        gcm_seal_message(&as, p->plain, p->got + 2048, n, tags[0], 16);
        gcm_seal_message(&m, p->plain, p->got, n, tags[1], 16);
        good &= selftest_same(p->got, p->got + 2048, n) && selftest_same(tags[0], tags[1], 16);
        good &= gcm_open_message(&m, p->got, p->got, n, tags[1], 16) == CCMEM_OK;
        good &= selftest_same(p->got, p->plain, n);
    }
    return good;
}

/* Counters of messages go round after 2^32 - 1. */
static int check_counter(const pages *p) {
    uint8_t counter[2][16], got[2][80] = {{0}};

    memset(counter, 0xff, sizeof counter);
    p->ops->crypt(p->key, got[0], got[0], 5, counter[0]);
    for (size_t i = 0; i < 5; i++) {
        p->ops->crypt(p->key, got[1] + 16 * i, got[1] + 16 * i, 1, counter[1]);
        if (counter[1][15] != i)
            return 0;
    }
    return selftest_same(got[0], got[1], 80) && selftest_same(counter[0], counter[1], 16) &&
           counter[0][11] == 0xff && selftest_zero(counter[0] + 12, 3);
}

/* With every byte of the result at its right place and none outside. */
static int check_pages(pages *p, size_t misalign, unsigned flags) {
    uint8_t *got = p->got + misalign, tags[PAGES][16];
    int good = 1;

    memset(p->got, 0x5a, sizeof p->got);
    p->ops->seal_pages(p->key, got, p->plain, SMALL_PAGES, SMALL_PAGE, p->place, tags, flags);
    for (size_t i = SMALL_PAGES; i < PAGES; i++)
        p->ops->seal_pages(p->key, got + place_of(i), p->plain + place_of(i), 1, size_of(i),
                           p->place + i, tags + i, flags);
    good &= selftest_same(got, p->sealed, TEXT) && selftest_same(tags, p->tag, sizeof tags) &&
            got[TEXT] == 0x5a;
    memset(p->got, 0x5a, sizeof p->got);
    good &= !p->ops->open_pages(p->key, got, p->sealed, SMALL_PAGES, SMALL_PAGE, p->place, TAGS(p),
                                flags);
    for (size_t i = SMALL_PAGES; i < PAGES; i++)
        good &= !p->ops->open_pages(p->key, got + place_of(i), p->sealed + place_of(i), 1,
                                    size_of(i), p->place + i, TAGS(p) + i, flags);
    return good && selftest_same(got, p->plain, TEXT) && got[TEXT] == 0x5a &&
           (!misalign || got[-1] == 0x5a);
}

/* In place. */
static int check_in_place(pages *p) {
    uint8_t tags[SMALL_PAGES][16];
    int good;

    memcpy(p->got, p->plain, LARGE_AT);
    p->ops->seal_pages(p->key, p->got, p->got, SMALL_PAGES, SMALL_PAGE, p->place, tags, 0);
    good = selftest_same(p->got, p->sealed, LARGE_AT) && selftest_same(tags, p->tag, sizeof tags);
    good &=
        !p->ops->open_pages(p->key, p->got, p->got, SMALL_PAGES, SMALL_PAGE, p->place, TAGS(p), 0);
    return good && selftest_same(p->got, p->plain, LARGE_AT);
}

/* Parts of the large page; then the same parts of it with one bit changed, at its start, inside the
 * part, or at its end. */
static int check_parts(pages *p) {
    /* With whole groups whose first counter's last byte is each that it may be, modulo 16. */
    static const uint16_t parts[][2] = {{0, 0},     {0, 1},      {1, 64},    {63, 130}, {511, 2},
                                        {1000, 64}, {4095, 514}, {8191, 1},  {8192, 0}, {0, 8192},
                                        {7, 8180},  {70, 8000},  {128, 8064}};
    const gcm_place *place = &p->place[SMALL_PAGES];
    uint8_t *sealed = p->sealed + LARGE_AT, *tag = p->tag[SMALL_PAGES];
    int good = 1;

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t offset = parts[i][0], n = parts[i][1];
        uint8_t *got = p->got + 1 + i % 5, *changed;
        memset(p->got, 0x5a, n + SLACK);
        good &= p->ops->open_part(p->key, got, sealed, LARGE_PAGE, place, tag, offset, n, 0) == 1;
        good &= selftest_same(got, p->plain + LARGE_AT + offset, n) && got[n] == 0x5a &&
                got[-1] == 0x5a;
        changed = sealed + (i % 3 == 0 ? 0 : i % 3 == 1 ? LARGE_PAGE - 1 : offset % LARGE_PAGE);
        *changed ^= 0x10;
        good &= p->ops->open_part(p->key, got, sealed, LARGE_PAGE, place, tag, offset, n, 0) == 0;
        good &= selftest_zero(got, n) && got[n] == 0x5a && got[-1] == 0x5a;
        *changed ^= 0x10;
    }
    return good;
}

/* One bit changed in page i, its tag, nonce or associated data: that page is refused and zero, the
 * others are right. */
static int check_changes(pages *p, unsigned flags) {
    int good = 1;

    for (size_t i = 0; i < SMALL_PAGES; i++) {
        uint8_t *const places[] = {p->sealed + i * SMALL_PAGE + 1023 * i, p->tag[i] + 5 * i,
                                   p->place[i].nonce + 11, p->place[i].ad + 15};
        uint8_t *changed = places[i % 4], *page = p->got + i * SMALL_PAGE;
        memset(p->got, 0x5a, LARGE_AT);
        *changed ^= 0x80;
        good &= p->ops->open_pages(p->key, p->got, p->sealed, SMALL_PAGES, SMALL_PAGE, p->place,
                                   TAGS(p), flags) == UINT64_C(1) << i;
        *changed ^= 0x80;
        good &= selftest_zero(page, SMALL_PAGE);
        memcpy(page, p->plain + i * SMALL_PAGE, SMALL_PAGE);
        good &= selftest_same(p->got, p->plain, LARGE_AT);
    }
    return good;
}

/* Every byte of the tag counts, also when nothing is handed out. */
static int check_tags(pages *p) {
    int good = p->ops->open_part(p->key, p->got, p->sealed, SMALL_PAGE, p->place, *p->tag, 7, 0, 0);

    for (size_t i = 0; i < GCM_TAG_SIZE; i++) {
        p->tag[0][i] ^= (uint8_t)(1u << i % 8);
        good &=
            !p->ops->open_part(p->key, p->got, p->sealed, SMALL_PAGE, p->place, *p->tag, 7, 0, 0);
        good &=
            p->ops->open_pages(p->key, p->got, p->sealed, 1, SMALL_PAGE, p->place, TAGS(p), 0) == 1;
        p->tag[0][i] ^= (uint8_t)(1u << i % 8);
    }
    return good;
}

ccmem_status selftest_gcm_pages(const gcm_ops *ops, const gcm_ops *portable, const void *key) {
    pages *p;
    int good;

    if (posix_memalign((void **)&p, 64, sizeof *p))
        return CCMEM_ERR_NOMEM;
    p->ops = ops;
    p->key = key;
    good = prepare(p, portable) && check_counter(p);
    good &= check_pages(p, 1, 0) && check_pages(p, 0, GCM_STREAM) && check_pages(p, 16, GCM_STREAM);
    good &= check_in_place(p) && check_parts(p) && check_tags(p);
    good &= check_changes(p, 0) && check_changes(p, GCM_STREAM);
    free(p);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
