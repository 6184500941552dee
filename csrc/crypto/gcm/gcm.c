/* SPDX-License-Identifier: Apache-2.0
 * What GCM needs beside the kernels: messages of any length with nonces of any length (SP 800-38D,
 * 7.1 and 7.2). */
#include "crypto/gcm/gcm.h"

#include "memory/secret.h"

#include <string.h>

/* All of one message that must not outlive it. */
typedef struct work {
    uint8_t first[GCM_BLOCK]; /* J0 */
    uint8_t counter[GCM_BLOCK];
    uint8_t sum[GCM_BLOCK];
    uint8_t last[GCM_BLOCK]; /* a block that is not full */
    uint8_t tag[GCM_TAG_SIZE];
} work;

/* Any number of bytes, padded with zeros to whole blocks. */
static void hash(const gcm_message *m, work *w, const uint8_t *data, size_t n) {
    const size_t tail = n % GCM_BLOCK;

    if (n - tail)
        m->ops->hash(m->key, w->sum, data, n / GCM_BLOCK);
    if (tail) {
        ccmem_wipe(w->last, sizeof w->last);
        copy_secret(w->last, data + (n - tail), tail);
        m->ops->hash(m->key, w->sum, w->last, 1);
    }
}

/* The last four bytes as a number, modulo 2^32. */
static void add_one(uint8_t counter[GCM_BLOCK]) {
    unsigned carry = 1;

    for (int i = GCM_BLOCK; i-- > GCM_BLOCK - 4; carry >>= 8) {
        carry += counter[i];
        counter[i] = (uint8_t)carry;
    }
}

/* J0 (SP 800-38D, 7.1, step 2), and the counter after it. Nonces are public; what GHASH makes of
 * one would give its key away. */
static void begin(const gcm_message *m, work *w) {
    memset(w, 0, sizeof *w);
    if (m->iv_len == GCM_NONCE_SIZE) {
        memcpy(w->first, m->iv, GCM_NONCE_SIZE);
        w->first[GCM_BLOCK - 1] = 1;
    } else {
        hash(m, w, m->iv, m->iv_len);
        ghash_lengths(w->last, 0, m->iv_len);
        m->ops->hash(m->key, w->sum, w->last, 1);
        memcpy(w->first, w->sum, GCM_BLOCK);
        memset(w->sum, 0, sizeof w->sum);
    }
    memcpy(w->counter, w->first, GCM_BLOCK);
    add_one(w->counter);
    hash(m, w, m->ad, m->ad_len);
}

static void crypt(const gcm_message *m, work *w, const uint8_t *in, uint8_t *out, size_t n) {
    const size_t tail = n % GCM_BLOCK;

    if (n - tail)
        m->ops->crypt(m->key, out, in, n / GCM_BLOCK, w->counter);
    if (tail) {
        ccmem_wipe(w->last, sizeof w->last);
        copy_secret(w->last, in + (n - tail), tail);
        m->ops->crypt(m->key, w->last, w->last, 1, w->counter);
        copy_secret(out + (n - tail), w->last, tail);
    }
}

/* The whole tag, of `n` bytes of ciphertext. */
static void finish(const gcm_message *m, work *w, const uint8_t *ciphertext, size_t n) {
    hash(m, w, ciphertext, n);
    ghash_lengths(w->last, m->ad_len, n);
    m->ops->hash(m->key, w->sum, w->last, 1);
    m->ops->crypt(m->key, w->tag, w->sum, 1, w->first);
}

void gcm_seal_message(const gcm_message *m, const uint8_t *in, uint8_t *out, size_t n, uint8_t *tag,
                      size_t tag_len) {
    work w;

    begin(m, &w);
    crypt(m, &w, in, out, n);
    finish(m, &w, out, n);
    copy_secret(tag, w.tag, tag_len);
    ccmem_wipe(&w, sizeof w);
    burn_stack();
}

ccmem_status gcm_open_message(const gcm_message *m, const uint8_t *in, uint8_t *out, size_t n,
                              const uint8_t *tag, size_t tag_len) {
    work w;
    int good;

    begin(m, &w);
    finish(m, &w, in, n);
    good = ccmem_equal(w.tag, tag, tag_len);
    if (good)
        crypt(m, &w, in, out, n);
    else if (n)
        ccmem_wipe(out, n);
    ccmem_wipe(&w, sizeof w);
    burn_stack();
    return good ? CCMEM_OK : CCMEM_ERR_INTEGRITY;
}
