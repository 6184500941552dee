/* SPDX-License-Identifier: Apache-2.0
 *
 * The same work done by other libraries, for the benchmarks: AES-XTS and authenticated ciphers over
 * many pages, one data unit or message a page, with the key set once. Built when the benchmarks
 * run, as a shared object; it needs a C compiler and the libraries themselves, not their headers:
 * the few functions used are declared here as their manuals give them (OpenSSL:
 * EVP_EncryptInit(3); libgcrypt: "Symmetric cryptography"; libaegis: aegis128x2.h).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

enum { PEER_OPENSSL = 0, PEER_LIBGCRYPT = 1, PEER_LIBAEGIS = 2 };
enum { MODE_XTS = 0, MODE_GCM = 1, MODE_AEGIS = 2 };
enum { TAG_SIZE = 16 };

/* ---- OpenSSL --------------------------------------------------------------------------------- */

typedef struct evp_cipher_st EVP_CIPHER;
typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;

static struct {
    const char *(*version)(int);
    EVP_CIPHER_CTX *(*ctx_new)(void);
    void (*ctx_free)(EVP_CIPHER_CTX *);
    const EVP_CIPHER *(*aes_128_xts)(void);
    const EVP_CIPHER *(*aes_256_xts)(void);
    const EVP_CIPHER *(*aes_128_gcm)(void);
    int (*init)(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const uint8_t *, const uint8_t *,
                int);
    int (*update)(EVP_CIPHER_CTX *, uint8_t *, int *, const uint8_t *, int);
    int (*final)(EVP_CIPHER_CTX *, uint8_t *, int *);
    int (*control)(EVP_CIPHER_CTX *, int, int, void *);
} ossl;

/* Numbers of OpenSSL's interface (evp.h), part of its ABI. */
enum { EVP_CTRL_AEAD_GET_TAG = 0x10, EVP_CTRL_AEAD_SET_TAG = 0x11 };

/* ---- libgcrypt ------------------------------------------------------------------------------- */

typedef struct gcry_cipher_handle *gcry_cipher_hd_t;

/* Numbers of libgcrypt's interface (gcrypt.h), part of its ABI. */
enum {
    GCRYCTL_DISABLE_SECMEM = 37,
    GCRYCTL_INITIALIZATION_FINISHED = 38,
    GCRY_CIPHER_AES128 = 7,
    GCRY_CIPHER_AES256 = 9,
    GCRY_CIPHER_MODE_XTS = 13
};

static struct {
    const char *(*check_version)(const char *);
    unsigned (*control)(int, ...);
    unsigned (*open)(gcry_cipher_hd_t *, int, int, unsigned);
    void (*close)(gcry_cipher_hd_t);
    unsigned (*setkey)(gcry_cipher_hd_t, const void *, size_t);
    unsigned (*setiv)(gcry_cipher_hd_t, const void *, size_t);
    unsigned (*encrypt)(gcry_cipher_hd_t, void *, size_t, const void *, size_t);
    unsigned (*decrypt)(gcry_cipher_hd_t, void *, size_t, const void *, size_t);
} gcry;

/* ---- libaegis -------------------------------------------------------------------------------- */

typedef int (*aegis_seal)(uint8_t *c, uint8_t *tag, size_t tag_len, const uint8_t *m, size_t n,
                          const uint8_t *ad, size_t ad_len, const uint8_t *nonce,
                          const uint8_t *key);
typedef int (*aegis_open)(uint8_t *m, const uint8_t *c, size_t n, const uint8_t *tag,
                          size_t tag_len, const uint8_t *ad, size_t ad_len, const uint8_t *nonce,
                          const uint8_t *key);

/* ---- loading --------------------------------------------------------------------------------- */

typedef struct symbol {
    void *slot;
    const char *name;
} symbol;

static int resolve(const char *const *libraries, const symbol *symbols, size_t n) {
    void *library = NULL;
    for (; *libraries && !library; libraries++)
        library = dlopen(*libraries, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return 0;
    for (size_t i = 0; i < n; i++) {
        void *address = dlsym(library, symbols[i].name);
        if (!address)
            return 0;
        memcpy(symbols[i].slot, &address, sizeof address);
    }
    return 1;
}

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Loads the library; its version, or NULL when it is not there or too old. */
EXPORT const char *peer_load(int which) {
    if (which == PEER_OPENSSL) {
        static const char *const names[] = {"libcrypto.so.3", "libcrypto.so.1.1", NULL};
        const symbol symbols[] = {
            {&ossl.version, "OpenSSL_version"},      {&ossl.ctx_new, "EVP_CIPHER_CTX_new"},
            {&ossl.ctx_free, "EVP_CIPHER_CTX_free"}, {&ossl.aes_128_xts, "EVP_aes_128_xts"},
            {&ossl.aes_256_xts, "EVP_aes_256_xts"},  {&ossl.aes_128_gcm, "EVP_aes_128_gcm"},
            {&ossl.init, "EVP_CipherInit_ex"},       {&ossl.update, "EVP_CipherUpdate"},
            {&ossl.final, "EVP_CipherFinal_ex"},     {&ossl.control, "EVP_CIPHER_CTX_ctrl"},
        };
        return resolve(names, symbols, COUNT(symbols)) ? ossl.version(0) : NULL;
    }
    if (which == PEER_LIBGCRYPT) {
        static const char *const names[] = {"libgcrypt.so.20", NULL};
        const symbol symbols[] = {
            {&gcry.check_version, "gcry_check_version"},
            {&gcry.control, "gcry_control"},
            {&gcry.open, "gcry_cipher_open"},
            {&gcry.close, "gcry_cipher_close"},
            {&gcry.setkey, "gcry_cipher_setkey"},
            {&gcry.setiv, "gcry_cipher_setiv"},
            {&gcry.encrypt, "gcry_cipher_encrypt"},
            {&gcry.decrypt, "gcry_cipher_decrypt"},
        };
        /* XTS came with libgcrypt 1.8. */
        const char *version;
        if (!resolve(names, symbols, COUNT(symbols)) || !(version = gcry.check_version("1.8.0")))
            return NULL;
        gcry.control(GCRYCTL_DISABLE_SECMEM, 0);
        gcry.control(GCRYCTL_INITIALIZATION_FINISHED, 0);
        return version;
    }
    return NULL;
}

/* ---- ciphers --------------------------------------------------------------------------------- */

typedef struct peer_cipher {
    int which, mode, encrypt;
    EVP_CIPHER_CTX *ctx;
    gcry_cipher_hd_t handle;
    aegis_seal seal;
    aegis_open open;
    uint8_t key[16]; /* of AEGIS, which has no schedule to keep */
    uint8_t (*tag)[TAG_SIZE];
    uint64_t ntags;
} peer_cipher;

EXPORT void peer_cipher_free(peer_cipher *c) {
    if (!c)
        return;
    if (c->ctx)
        ossl.ctx_free(c->ctx);
    if (c->handle)
        gcry.close(c->handle);
    free(c->tag);
    free(c);
}

static const EVP_CIPHER *ossl_cipher(int mode, size_t key_len) {
    if (mode == MODE_GCM)
        return ossl.aes_128_gcm();
    return key_len == 32 ? ossl.aes_128_xts() : ossl.aes_256_xts();
}

/* A cipher for a library that peer_load found: XTS under K1 || K2 of 32 or 64 bytes, or AES-128-GCM
 * (OpenSSL only). NULL on failure. */
EXPORT peer_cipher *peer_cipher_new(int which, int mode, int encrypt, const uint8_t *key,
                                    size_t key_len) {
    static const uint8_t zero[16];
    peer_cipher *c = calloc(1, sizeof *c);
    int ok = 0;
    if (!c)
        return NULL;
    c->which = which;
    c->mode = mode;
    c->encrypt = encrypt;
    if (which == PEER_OPENSSL) {
        c->ctx = ossl.ctx_new();
        ok = c->ctx && ossl.init(c->ctx, ossl_cipher(mode, key_len), NULL, key, zero, encrypt) == 1;
    } else if (which == PEER_LIBGCRYPT && mode == MODE_XTS) {
        ok = !gcry.open(&c->handle, key_len == 32 ? GCRY_CIPHER_AES128 : GCRY_CIPHER_AES256,
                        GCRY_CIPHER_MODE_XTS, 0) &&
             !gcry.setkey(c->handle, key, key_len);
    }
    if (ok)
        return c;
    peer_cipher_free(c);
    return NULL;
}

/* AEGIS-128X2 through two functions of a libaegis that is in the process already and initialised.
 * NULL on failure. */
EXPORT peer_cipher *peer_aegis_new(aegis_seal seal, aegis_open open, int encrypt,
                                   const uint8_t key[16]) {
    peer_cipher *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->which = PEER_LIBAEGIS;
    c->mode = MODE_AEGIS;
    c->encrypt = encrypt;
    c->seal = seal;
    c->open = open;
    memcpy(c->key, key, sizeof c->key);
    return c;
}

static int xts_page(peer_cipher *c, const uint8_t tweak[16], const uint8_t *in, uint8_t *out,
                    size_t page_size) {
    int n;
    if (c->which == PEER_OPENSSL)
        return ossl.init(c->ctx, NULL, NULL, NULL, tweak, -1) == 1 &&
               ossl.update(c->ctx, out, &n, in, (int)page_size) == 1 && n == (int)page_size;
    if (gcry.setiv(c->handle, tweak, 16))
        return 0;
    /* libgcrypt knows "in place" by a NULL input. */
    if (in == out)
        return !(c->encrypt ? gcry.encrypt : gcry.decrypt)(c->handle, out, page_size, NULL, 0);
    return !(c->encrypt ? gcry.encrypt : gcry.decrypt)(c->handle, out, page_size, in, page_size);
}

static int gcm_page(peer_cipher *c, int encrypt, const uint8_t nonce[12], const uint8_t *in,
                    uint8_t *out, size_t page_size, uint8_t tag[TAG_SIZE]) {
    int n, rest;
    if (ossl.init(c->ctx, NULL, NULL, NULL, nonce, encrypt) != 1)
        return 0;
    if (!encrypt && ossl.control(c->ctx, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, tag) != 1)
        return 0;
    if (ossl.update(c->ctx, out, &n, in, (int)page_size) != 1 || n != (int)page_size ||
        ossl.final(c->ctx, out + n, &rest) != 1)
        return 0;
    return !encrypt || ossl.control(c->ctx, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, tag) == 1;
}

static int aegis_page(peer_cipher *c, int encrypt, const uint8_t nonce[16], const uint8_t *in,
                      uint8_t *out, size_t page_size, uint8_t tag[TAG_SIZE]) {
    if (encrypt)
        return !c->seal(out, tag, TAG_SIZE, in, page_size, NULL, 0, nonce, c->key);
    return !c->open(out, in, page_size, tag, TAG_SIZE, NULL, 0, nonce, c->key);
}

/* Page p under the 128-bit number p + 2^64 (version 1), little-endian, as tweak or nonce; GCM's
 * nonce is its first 12 bytes. 0 when the library reports an error or refuses a tag. */
static int pass(peer_cipher *c, int encrypt, const uint8_t *in, uint8_t *out, size_t page_size,
                uint64_t npages) {
    for (uint64_t p = 0; p < npages; p++, in += page_size, out += page_size) {
        uint8_t number[16] = {[8] = 1};
        for (int i = 0; i < 8; i++)
            number[i] = (uint8_t)(p >> (8 * i));
        int ok = c->mode == MODE_XTS ? xts_page(c, number, in, out, page_size)
                 : c->mode == MODE_GCM
                     ? gcm_page(c, encrypt, number, in, out, page_size, c->tag[p])
                     : aegis_page(c, encrypt, number, in, out, page_size, c->tag[p]);
        if (!ok)
            return 0;
    }
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Makes room for the tags of an authenticated cipher; one that opens first seals the pages at
 * `memory` in place, so that there is something to open. 0 on failure. */
EXPORT int peer_cipher_prepare(peer_cipher *c, uint8_t *memory, size_t page_size, uint64_t npages) {
    if (c->mode == MODE_XTS)
        return 1;
    void *room = realloc(c->tag, npages * TAG_SIZE);
    if (!room)
        return 0;
    c->tag = room;
    c->ntags = npages;
    return c->encrypt || pass(c, 1, memory, memory, page_size, npages);
}

/* The tags, 16 bytes a page, of the pages that were sealed last; NULL where there are none. */
EXPORT const uint8_t *peer_cipher_tags(const peer_cipher *c) { return c->tag ? c->tag[0] : NULL; }

/* Seconds for `repeats` passes over npages pages; negative when the library reports an error, when
 * a tag does not match, or when there is no room for the tags. */
EXPORT double peer_cipher_pages(peer_cipher *c, const uint8_t *in, uint8_t *out, size_t page_size,
                                uint64_t npages, uint64_t repeats) {
    if (c->mode != MODE_XTS && npages > c->ntags)
        return -1;
    double start = now();
    for (uint64_t r = 0; r < repeats; r++) {
        if (!pass(c, c->encrypt, in, out, page_size, npages))
            return -1;
    }
    return now() - start;
}
