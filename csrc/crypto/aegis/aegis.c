/* SPDX-License-Identifier: Apache-2.0
 * What AEGIS needs beside the kernels: messages that do not end on a block (RFC 10032, 3.1, 3.2 and
 * 3.8), and the public functions for one message. */
#include "crypto/aegis/aegis.h"

#include "memory/secret.h"

enum { BLOCK_MAX = 64, TAG_MAX = 32 };

/* One message on its way, and all of it that must not outlive it. */
typedef struct message {
    const aegis_ops *ops;
    unsigned lanes;
    size_t block; /* bytes of one, of all lanes */
    aegis_state state;
    aegis_state copy;
    uint8_t last[BLOCK_MAX]; /* a block that is not full */
    uint8_t tag[TAG_MAX];
} message;

/* The state after the key, the nonce and the associated data, whose last block is padded with
 * zeros. */
static void message_start(message *m, const aegis_ops *ops, unsigned lanes, const uint8_t *key,
                          const uint8_t *nonce, const uint8_t *ad, size_t ad_len) {
    size_t whole, tail;

    m->ops = ops;
    m->lanes = lanes;
    m->block = (size_t)ops->block * lanes;
    whole = ad_len / m->block;
    tail = ad_len % m->block;
    ops->start(&m->state, lanes, key, nonce);
    if (whole)
        ops->absorb(&m->state, lanes, ad, whole);
    if (tail) {
        ccmem_wipe(m->last, sizeof m->last);
        copy_secret(m->last, ad + (ad_len - tail), tail);
        ops->absorb(&m->state, lanes, m->last, 1);
    }
}

/* The last `tail` bytes, less than a block: encrypted as a block padded with zeros and cut off. */
static void seal_tail(message *m, const uint8_t *in, uint8_t *out, size_t tail) {
    ccmem_wipe(m->last, sizeof m->last);
    copy_secret(m->last, in, tail);
    m->ops->seal(&m->state, m->lanes, m->last, m->last, 1);
    copy_secret(out, m->last, tail);
}

/* The reverse. What the state takes in is the padded plaintext, but to decrypt the missing bytes of
 * the ciphertext would give the keystream, not zeros. So a block of zeros, sealed with a copy of
 * the state, gives the keystream, and the state takes in the plaintext made with it. */
CLEAR_REGISTERS static void open_tail(message *m, const uint8_t *in, uint8_t *out, size_t tail) {
    m->copy = m->state;
    ccmem_wipe(m->last, sizeof m->last);
    m->ops->seal(&m->copy, m->lanes, m->last, m->last, 1);
    for (size_t i = 0; i < tail; i++)
        m->last[i] ^= in[i];
    ccmem_wipe(m->last + tail, sizeof m->last - tail);
    copy_secret(out, m->last, tail);
    m->ops->absorb(&m->state, m->lanes, m->last, 1);
}

void aegis_seal_message(const aegis_ops *ops, unsigned lanes, const uint8_t *key,
                        const uint8_t *nonce, const uint8_t *ad, size_t ad_len, const uint8_t *in,
                        uint8_t *out, size_t n, uint8_t *tag, size_t tag_len) {
    message m;
    size_t tail;

    message_start(&m, ops, lanes, key, nonce, ad, ad_len);
    tail = n % m.block;
    if (n - tail)
        ops->seal(&m.state, lanes, out, in, n / m.block);
    if (tail)
        seal_tail(&m, in + (n - tail), out + (n - tail), tail);
    ops->finish(&m.state, lanes, ad_len, n, tag, tag_len);
    ccmem_wipe(&m, sizeof m);
    burn_stack(); /* two lanes do not fit into sixteen registers of one block */
}

ccmem_status aegis_open_message(const aegis_ops *ops, unsigned lanes, const uint8_t *key,
                                const uint8_t *nonce, const uint8_t *ad, size_t ad_len,
                                const uint8_t *in, uint8_t *out, size_t n, const uint8_t *tag,
                                size_t tag_len) {
    message m;
    size_t tail;
    int good;

    message_start(&m, ops, lanes, key, nonce, ad, ad_len);
    tail = n % m.block;
    if (n - tail)
        ops->open(&m.state, lanes, out, in, n / m.block);
    if (tail)
        open_tail(&m, in + (n - tail), out + (n - tail), tail);
    ops->finish(&m.state, lanes, ad_len, n, m.tag, tag_len);
    good = ccmem_equal(m.tag, tag, tag_len);
    if (!good)
        ccmem_wipe(out, n);
    ccmem_wipe(&m, sizeof m); /* with the right tag of a wrong message */
    burn_stack();
    return good ? CCMEM_OK : CCMEM_ERR_INTEGRITY;
}
