/* SPDX-License-Identifier: Apache-2.0
 * Root keys: where they come from, what is derived from them, and keys of files. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pages/key.h"

#include "crypto/aes/aes.h"
#include "crypto/aes/keywrap.h"
#include "crypto/mac/kdf.h"
#include "crypto/sm3/sm3.h"
#include "memory/secret.h"
#include "pages/key_text.h"
#include "pages/page.h"
#include "platform/fork.h"
#include "platform/random.h"
#include "tiers/tiers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ccmem_key {
    aes_key *schedule; /* AES-256 for CMAC, in secret memory; it begins with the key itself */
    uint64_t generation;
    uint64_t refs; /* atomic */
    ccmem_secret_level level;
    ccmem_secret_level require;
};

/* `raw` is 32 bytes; what it points at stays the caller's to wipe. */
static ccmem_status key_new(const uint8_t *raw, ccmem_secret_level require, ccmem_key **out) {
    ccmem_key *key = calloc(1, sizeof *key);
    ccmem_status status;
    void *slot;

    if (!key)
        return CCMEM_ERR_NOMEM;
    status = secret_alloc(sizeof *key->schedule, require, &slot, &key->level);
    if (status) {
        free(key);
        return status;
    }
    key->schedule = slot;
    key->require = require;
    key->refs = 1;
    key->generation = fork_generation();
    aes_expand(key->schedule, raw, CCMEM_ROOT_KEY_SIZE);
    *out = key;
    return CCMEM_OK;
}

ccmem_status ccmem_key_generate(ccmem_secret_level require, ccmem_key **out) {
    ccmem_status status;
    void *raw;

    if (!out)
        return CCMEM_ERR_ARGUMENT;
    status = secret_alloc(CCMEM_ROOT_KEY_SIZE, require, &raw, NULL);
    if (status)
        return status;
    status = random_bytes(raw, CCMEM_ROOT_KEY_SIZE);
    if (!status)
        status = key_new(raw, require, out);
    secret_free(raw);
    return status;
}

ccmem_status ccmem_key_from_bytes(const uint8_t key[32], ccmem_secret_level require,
                                  ccmem_key **out) {
    if (!key || !out)
        return CCMEM_ERR_ARGUMENT;
    return key_new(key, require, out);
}

/* Reads up to n bytes or the end of the file. */
static ccmem_status read_all(int fd, uint8_t *p, size_t n, size_t *length) {
    *length = 0;
    while (*length < n) {
        ssize_t got = read(fd, p + *length, n - *length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return CCMEM_ERR_IO;
        if (!got)
            break;
        *length += (size_t)got;
    }
    return CCMEM_OK;
}

/* What is in the file becomes the first 32 bytes of `raw`. */
static ccmem_status read_key(int fd, uint8_t *raw) {
    size_t length;
    ccmem_status status = read_all(fd, raw, KEY_TEXT_MAX + 1, &length);

    if (status || length == CCMEM_ROOT_KEY_SIZE)
        return status;
    return key_text_hex(raw, length);
}

ccmem_status ccmem_key_from_fd(int fd, ccmem_secret_level require, ccmem_key **out) {
    ccmem_status status;
    void *raw;
    int error;

    if (!out)
        return CCMEM_ERR_ARGUMENT;
    status = secret_alloc(KEY_TEXT_MAX + 1, require, &raw, NULL);
    if (status)
        return status;
    status = read_key(fd, raw);
    error = errno;
    if (!status)
        status = key_new(raw, require, out);
    secret_free(raw);
    if (status == CCMEM_ERR_IO)
        errno = error;
    return status;
}

ccmem_status ccmem_key_from_text(const uint8_t *text, size_t n, ccmem_secret_level require,
                                 ccmem_key **out) {
    ccmem_status status;
    void *raw;

    if ((!text && n) || !out)
        return CCMEM_ERR_ARGUMENT;
    if (n > KEY_TEXT_MAX)
        return CCMEM_ERR_KEYFILE;
    status = secret_alloc(KEY_TEXT_MAX + 1, require, &raw, NULL);
    if (status)
        return status;
    if (n)
        copy_secret(raw, text, n);
    status = key_text_hex(raw, n);
    if (status)
        status = key_text_base64(raw, n);
    if (!status)
        status = key_new(raw, require, out);
    secret_free(raw);
    return status;
}

ccmem_secret_level ccmem_key_level(const ccmem_key *key) {
    return key ? key->level : CCMEM_SECRET_NONE;
}

ccmem_key *key_retain(ccmem_key *key) {
    __atomic_fetch_add(&key->refs, 1, __ATOMIC_RELAXED);
    return key;
}

ccmem_secret_level key_require(const ccmem_key *key) { return key->require; }

ccmem_status ccmem_key_check(const ccmem_key *key) {
    if (!key)
        return CCMEM_ERR_ARGUMENT;
    return fork_alien(key->generation) ? CCMEM_ERR_FORK : CCMEM_OK;
}

void ccmem_key_free(ccmem_key *key) {
    if (!key || __atomic_fetch_sub(&key->refs, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    if (!fork_alien(key->generation))
        secret_free(key->schedule);
    free(key);
}

/* The labels, cipher names among them, are all different: what is derived for one purpose tells
 * nothing of what is derived for another. */
static ccmem_status derive_by(const ccmem_key *key, key_derivation by, const char *label,
                              const uint8_t *context, size_t context_len, uint8_t *out,
                              size_t out_len) {
    if (fork_alien(key->generation))
        return CCMEM_ERR_FORK;
    if (by == KEY_BY_SM3) {
        kdf_counter_sm3(key->schedule->rk[0], CCMEM_ROOT_KEY_SIZE, (const uint8_t *)label,
                        strlen(label), context, context_len, out, out_len);
        return CCMEM_OK;
    }
    kdf_counter_cmac(tier_active_kernels().aes, key->schedule, (const uint8_t *)label,
                     strlen(label), context, context_len, out, out_len);
    return CCMEM_OK;
}

static ccmem_status derive(const ccmem_key *key, const char *label, const uint8_t *context,
                           size_t context_len, uint8_t *out, size_t out_len) {
    return derive_by(key, KEY_BY_AES, label, context, context_len, out, out_len);
}

ccmem_status key_derive(const ccmem_key *key, key_derivation by, const char *cipher_name,
                        const uint8_t store_id[CCMEM_STORE_ID_SIZE], uint32_t page_size,
                        uint8_t *out, size_t out_len) {
    uint8_t context[CCMEM_STORE_ID_SIZE + 4];

    memcpy(context, store_id, CCMEM_STORE_ID_SIZE);
    for (int i = 0; i < 4; i++)
        context[CCMEM_STORE_ID_SIZE + i] = (uint8_t)(page_size >> (24 - 8 * i));
    return derive_by(key, by, cipher_name, context, sizeof context, out, out_len);
}

/* ---- keys of files -----------------------------------------------------------------------------
 * */

/* One slot of secret memory for what wrapping takes. */
typedef struct wrapping {
    keywrap_key kek;
    uint8_t raw[CCMEM_ROOT_KEY_SIZE]; /* the key-encryption key, then the key that was unwrapped */
} wrapping;

static ccmem_status wrapping_new(const ccmem_key *key, wrapping **out) {
    ccmem_status status;
    wrapping *w;
    void *slot;

    status = secret_alloc(sizeof *w, key->require, &slot, NULL);
    if (status)
        return status;
    w = slot;
    status = derive(key, "key-wrap", NULL, 0, w->raw, sizeof w->raw);
    if (status) {
        secret_free(slot);
        return status;
    }
    keywrap_expand(&w->kek, w->raw, sizeof w->raw);
    *out = w;
    return CCMEM_OK;
}

ccmem_status ccmem_key_wrap(const ccmem_key *key, const ccmem_key *data_key, uint8_t wrapped[40]) {
    ccmem_status status;
    wrapping *w;

    if (!wrapped)
        return CCMEM_ERR_ARGUMENT;
    status = ccmem_key_check(key);
    if (!status)
        status = ccmem_key_check(data_key);
    if (!status)
        status = wrapping_new(key, &w);
    if (status)
        return status;
    keywrap_wrap(tier_active_kernels().aes, &w->kek, data_key->schedule->rk[0], CCMEM_ROOT_KEY_SIZE,
                 wrapped);
    secret_free(w);
    return CCMEM_OK;
}

ccmem_status ccmem_key_unwrap(const ccmem_key *key, const uint8_t wrapped[40],
                              ccmem_secret_level require, ccmem_key **out) {
    ccmem_status status;
    wrapping *w;

    if (!wrapped || !out)
        return CCMEM_ERR_ARGUMENT;
    status = ccmem_key_check(key);
    if (!status)
        status = wrapping_new(key, &w);
    if (status)
        return status;
    if (!keywrap_unwrap(tier_active_kernels().aes, &w->kek, wrapped, CCMEM_WRAPPED_KEY_SIZE,
                        w->raw))
        status = CCMEM_ERR_INTEGRITY;
    else
        status = key_new(w->raw, require == CCMEM_SECRET_MLOCK ? key->require : require, out);
    secret_free(w);
    return status;
}

ccmem_status ccmem_key_for_context(const ccmem_key *key, const uint8_t digest[32],
                                   ccmem_key **out) {
    ccmem_status status;
    void *raw;

    if (!digest || !out)
        return CCMEM_ERR_ARGUMENT;
    status = ccmem_key_check(key);
    if (!status)
        status = secret_alloc(CCMEM_ROOT_KEY_SIZE, key->require, &raw, NULL);
    if (status)
        return status;
    status =
        derive(key, "key-context", digest, CCMEM_CONTEXT_DIGEST_SIZE, raw, CCMEM_ROOT_KEY_SIZE);
    if (!status)
        status = key_new(raw, key->require, out);
    secret_free(raw);
    return status;
}

ccmem_status ccmem_key_id(const ccmem_key *key, uint8_t id[16]) {
    ccmem_status status = id ? ccmem_key_check(key) : CCMEM_ERR_ARGUMENT;

    return status ? status : derive(key, "key-id", NULL, 0, id, CCMEM_KEY_ID_SIZE);
}

ccmem_status ccmem_key_mac(const ccmem_key *key, ccmem_cipher cipher, const uint8_t context[16],
                           const uint8_t *msg, size_t n, uint8_t tag[16]) {
    const page_suite *suite = page_suite_of(cipher);
    struct {
        aes_key schedule;
        uint8_t raw[CCMEM_ROOT_KEY_SIZE];
        uint8_t whole[SM3_SIZE];
    } *mac;
    ccmem_status status;
    void *slot;

    if (!suite || !context || (!msg && n) || !tag)
        return CCMEM_ERR_ARGUMENT;
    status = ccmem_key_check(key);
    if (!status)
        status = secret_alloc(sizeof *mac, key->require, &slot, NULL);
    if (status)
        return status;
    mac = slot;
    status = derive_by(key, suite->derive, "key-mac", context, CCMEM_STORE_ID_SIZE, mac->raw,
                       sizeof mac->raw);
    if (!status && suite->derive == KEY_BY_SM3) {
        hmac_sm3(mac->raw, sizeof mac->raw, msg, n, mac->whole);
        copy_secret(tag, mac->whole, CCMEM_MAC_SIZE);
    } else if (!status) {
        aes_expand(&mac->schedule, mac->raw, sizeof mac->raw);
        cmac(tier_active_kernels().aes, &mac->schedule, msg, n, tag);
    }
    secret_free(slot);
    return status;
}

ccmem_status ccmem_key_copy(const ccmem_key *key, uint8_t out[32]) {
    ccmem_status status = out ? ccmem_key_check(key) : CCMEM_ERR_ARGUMENT;

    if (!status)
        copy_secret(out, key->schedule->rk[0], CCMEM_ROOT_KEY_SIZE);
    return status;
}
