/* SPDX-License-Identifier: Apache-2.0
 *
 * The GCM kernels of the portable tier, for any block cipher, in constant-time C; the reference
 * that every other tier is tested against. A cipher's file defines what follows, then includes this
 * file once.
 *
 *   GCM_KEY    the type of its expanded key, with a member `ghash_key hash`
 *   GCM_WIDTH  blocks that it encrypts at a time
 *   gcm_encrypt(key, out, in)  encrypts so many, in place or not
 *   GCM_OPS    the name of the table to define
 */
#include "crypto/gcm/gcm.h"
#include "memory/secret.h"

#include <string.h>

enum { GCM_BYTES = GCM_WIDTH * GCM_BLOCK };

/* Everything of one call that must not outlive it. */
typedef struct scratch {
    const GCM_KEY *key;
    uint8_t nonce[GCM_BLOCK]; /* the counter's place in it is not used */
    uint32_t number;          /* of the next block */
    uint8_t sum[GCM_BLOCK];
    uint8_t mask[GCM_BLOCK]; /* of the tag */
    uint8_t tag[GCM_TAG_SIZE];
    uint8_t stream[GCM_BYTES];
    uint8_t text[GCM_BYTES];
} scratch;

static void put_be32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void next_stream(scratch *s, size_t nblocks) {
    for (size_t i = 0; i < nblocks; i++) {
        memcpy(s->stream + i * GCM_BLOCK, s->nonce, GCM_NONCE_SIZE);
        put_be32(s->stream + i * GCM_BLOCK + GCM_NONCE_SIZE, s->number++);
    }
    gcm_encrypt(s->key, s->stream, s->stream);
}

/* In a frame of its own, which burn_stack() reaches: compilers keep keystream there. */
static __attribute__((noinline)) void xor_stream(uint8_t *out, const uint8_t *in,
                                                 const uint8_t *stream, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = in[i] ^ stream[i];
}

/* Whole blocks. What is loaded of src goes to the hash and to the keystream alike. */
static void crypt_run(scratch *s, int seal, uint8_t *dst, const uint8_t *src, size_t n) {
    for (size_t i = 0; i < n; i += GCM_BYTES) {
        const size_t some = n - i < GCM_BYTES ? n - i : GCM_BYTES;
        next_stream(s, some / GCM_BLOCK);
        copy_secret(s->text, src + i, some);
        if (!seal)
            ghash_blocks(&s->key->hash, s->sum, s->text, some / GCM_BLOCK);
        xor_stream(s->text, s->text, s->stream, some);
        if (seal)
            ghash_blocks(&s->key->hash, s->sum, s->text, some / GCM_BLOCK);
        copy_secret(dst + i, s->text, some);
    }
}

static void begin_page(scratch *s, const gcm_place *place) {
    memcpy(s->nonce, place->nonce, GCM_NONCE_SIZE);
    memset(s->sum, 0, sizeof s->sum);
    s->number = 1;
    next_stream(s, 1);
    memcpy(s->mask, s->stream, GCM_BLOCK);
    ghash_blocks(&s->key->hash, s->sum, place->ad, 1);
}

static void end_page(scratch *s, size_t size) {
    ghash_lengths(s->stream, GCM_BLOCK, size);
    ghash_blocks(&s->key->hash, s->sum, s->stream, 1);
    xor_stream(s->tag, s->sum, s->mask, GCM_TAG_SIZE);
}

static void finish(scratch *s) {
    ccmem_wipe(s, sizeof *s);
    burn_stack();
}

CLEAR_REGISTERS static void seal_pages(const void *key, uint8_t *dst, const uint8_t *src,
                                       size_t npages, size_t page_size, const gcm_place *place,
                                       uint8_t (*tag)[16], unsigned flags) {
    scratch s = {.key = key};

    (void)flags;
    for (size_t i = 0; i < npages; i++, dst += page_size, src += page_size) {
        begin_page(&s, place + i);
        crypt_run(&s, 1, dst, src, page_size);
        end_page(&s, page_size);
        memcpy(tag[i], s.tag, GCM_TAG_SIZE);
    }
    finish(&s);
}

CLEAR_REGISTERS static uint64_t open_pages(const void *key, uint8_t *dst, const uint8_t *src,
                                           size_t npages, size_t page_size, const gcm_place *place,
                                           const uint8_t (*tag)[16], unsigned flags) {
    uint64_t bad = 0;
    scratch s = {.key = key};

    (void)flags;
    for (size_t i = 0; i < npages; i++, dst += page_size, src += page_size) {
        begin_page(&s, place + i);
        crypt_run(&s, 0, dst, src, page_size);
        end_page(&s, page_size);
        if (!ccmem_equal(s.tag, tag[i], GCM_TAG_SIZE)) {
            ccmem_wipe(dst, page_size);
            bad |= UINT64_C(1) << i;
        }
    }
    finish(&s);
    return bad;
}

/* All of the page goes through the scratch; only the part asked for leaves it. */
CLEAR_REGISTERS static int open_part(const void *key, uint8_t *dst, const uint8_t *src,
                                     size_t page_size, const gcm_place *place,
                                     const uint8_t tag[16], size_t offset, size_t n,
                                     unsigned flags) {
    const size_t end = offset + n;
    scratch s = {.key = key};
    int good;

    (void)flags;
    begin_page(&s, place);
    for (size_t at = 0; at < page_size; at += GCM_BYTES) {
        const size_t size = page_size - at < GCM_BYTES ? page_size - at : GCM_BYTES;
        const size_t from = offset > at ? offset : at, to = end < at + size ? end : at + size;
        crypt_run(&s, 0, s.text, src + at, size);
        if (from < to)
            copy_secret(dst + (from - offset), s.text + (from - at), to - from);
    }
    end_page(&s, page_size);
    good = ccmem_equal(s.tag, tag, GCM_TAG_SIZE);
    if (!good && n)
        ccmem_wipe(dst, n);
    finish(&s);
    return good;
}

CLEAR_REGISTERS static void crypt(const void *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                                  uint8_t counter[GCM_BLOCK]) {
    scratch s = {.key = key};

    memcpy(s.nonce, counter, GCM_NONCE_SIZE);
    for (int i = GCM_NONCE_SIZE; i < GCM_BLOCK; i++)
        s.number = s.number << 8 | counter[i];
    for (size_t n; nblocks; nblocks -= n) {
        n = nblocks < GCM_WIDTH ? nblocks : GCM_WIDTH;
        next_stream(&s, n);
        xor_stream(dst, src, s.stream, n * GCM_BLOCK);
        dst += n * GCM_BLOCK;
        src += n * GCM_BLOCK;
    }
    put_be32(counter + GCM_NONCE_SIZE, s.number);
    finish(&s);
}

CLEAR_REGISTERS static void hash(const void *of, uint8_t sum[GCM_BLOCK], const uint8_t *data,
                                 size_t nblocks) {
    const GCM_KEY *key = of;

    ghash_blocks(&key->hash, sum, data, nblocks);
    burn_stack();
}

const gcm_ops GCM_OPS = {.seal_pages = seal_pages,
                         .open_pages = open_pages,
                         .open_part = open_part,
                         .crypt = crypt,
                         .hash = hash};
