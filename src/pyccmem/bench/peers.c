/* SPDX-License-Identifier: Apache-2.0
 *
 * The same work done by other libraries, for the benchmarks: XTS and authenticated ciphers over
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
enum { TAG_SIZE = 16, MAX_KEY = 64, MAX_NONCE = 32 };

/* ---- OpenSSL --------------------------------------------------------------------------------- */

typedef struct evp_cipher_st EVP_CIPHER;
typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;

/* One build of OpenSSL, or of a library with the same functions. */
typedef struct openssl {
    const char *(*version)(int);
    EVP_CIPHER_CTX *(*ctx_new)(void);
    void (*ctx_free)(EVP_CIPHER_CTX *);
    const EVP_CIPHER *(*by_name)(const char *);
    EVP_CIPHER *(*fetch)(void *, const char *, const char *); /* NULL before OpenSSL 3 */
    void (*cipher_free)(EVP_CIPHER *);                        /* NULL before OpenSSL 3 */
    int (*init)(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const uint8_t *, const uint8_t *,
                int);
    int (*update)(EVP_CIPHER_CTX *, uint8_t *, int *, const uint8_t *, int);
    int (*final)(EVP_CIPHER_CTX *, uint8_t *, int *);
    int (*control)(EVP_CIPHER_CTX *, int, int, void *);
} openssl;

/* Numbers of OpenSSL's interface (evp.h), part of its ABI. */
enum { EVP_CTRL_AEAD_GET_TAG = 0x10, EVP_CTRL_AEAD_SET_TAG = 0x11 };

/* ---- libgcrypt ------------------------------------------------------------------------------- */

typedef struct gcry_cipher_handle *gcry_cipher_hd_t;

/* Numbers of libgcrypt's interface (gcrypt.h), part of its ABI. */
enum { GCRYCTL_DISABLE_SECMEM = 37, GCRYCTL_INITIALIZATION_FINISHED = 38 };

static struct {
    const char *(*check_version)(const char *);
    unsigned (*control)(int, ...);
    unsigned (*open)(gcry_cipher_hd_t *, int, int, unsigned);
    void (*close)(gcry_cipher_hd_t);
    unsigned (*setkey)(gcry_cipher_hd_t, const void *, size_t);
    unsigned (*setiv)(gcry_cipher_hd_t, const void *, size_t);
    unsigned (*encrypt)(gcry_cipher_hd_t, void *, size_t, const void *, size_t);
    unsigned (*decrypt)(gcry_cipher_hd_t, void *, size_t, const void *, size_t);
    unsigned (*gettag)(gcry_cipher_hd_t, void *, size_t);
    unsigned (*checktag)(gcry_cipher_hd_t, const void *, size_t);
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

/* The first of the libraries that is there, or NULL. */
static void *open_library(const char *const *names, int flags) {
    void *library = NULL;
    for (; *names && !library; names++)
        library = dlopen(*names, RTLD_NOW | RTLD_LOCAL | flags);
    return library;
}

/* Puts the addresses of the symbols into their slots. 0 when one is missing. */
static int resolve(void *library, const symbol *symbols, size_t n) {
    for (size_t i = 0; i < n; i++) {
        void *address = dlsym(library, symbols[i].name);
        if (!address)
            return 0;
        memcpy(symbols[i].slot, &address, sizeof address);
    }
    return 1;
}

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Loads the build at `path`, or with NULL the system's. NULL when it is not there or is something
 * else. It stays until the process ends. */
EXPORT openssl *peer_openssl_load(const char *path) {
    const char *const names[] = {path ? path : "libcrypto.so.3", path ? NULL : "libcrypto.so.1.1",
                                 NULL};
    openssl *o = calloc(1, sizeof *o);
    /* Another build's own calls must not reach the functions of the system's. */
    void *library = open_library(names, path ? RTLD_DEEPBIND : 0);
    if (o && library) {
        const symbol needed[] = {
            {&o->version, "OpenSSL_version"},      {&o->ctx_new, "EVP_CIPHER_CTX_new"},
            {&o->ctx_free, "EVP_CIPHER_CTX_free"}, {&o->by_name, "EVP_get_cipherbyname"},
            {&o->init, "EVP_CipherInit_ex"},       {&o->update, "EVP_CipherUpdate"},
            {&o->final, "EVP_CipherFinal_ex"},     {&o->control, "EVP_CIPHER_CTX_ctrl"},
        };
        const symbol newer[] = {
            {&o->cipher_free, "EVP_CIPHER_free"},
            {&o->fetch, "EVP_CIPHER_fetch"},
        };
        if (resolve(library, needed, COUNT(needed))) {
            resolve(library, newer, COUNT(newer));
            return o;
        }
    }
    free(o);
    return NULL;
}

EXPORT const char *peer_openssl_version(const openssl *o) { return o->version(0); }

/* Loads libgcrypt; its version, or NULL when it is not there or too old. */
EXPORT const char *peer_libgcrypt_load(void) {
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
        {&gcry.gettag, "gcry_cipher_gettag"},
        {&gcry.checktag, "gcry_cipher_checktag"},
    };
    void *library = open_library(names, 0);
    /* XTS came with libgcrypt 1.8. */
    const char *version;
    if (!library || !resolve(library, symbols, COUNT(symbols)) ||
        !(version = gcry.check_version("1.8.0")))
        return NULL;
    gcry.control(GCRYCTL_DISABLE_SECMEM, 0);
    gcry.control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    return version;
}

/* ---- ciphers --------------------------------------------------------------------------------- */

typedef struct peer_cipher {
    int which, tagged, encrypt;
    const openssl *ossl;
    EVP_CIPHER *fetched;
    EVP_CIPHER_CTX *ctx;
    gcry_cipher_hd_t handle;
    aegis_seal seal;
    aegis_open open;
    uint8_t key[MAX_KEY]; /* of AEGIS, which has no schedule to keep */
    uint8_t (*tag)[TAG_SIZE];
    uint64_t ntags;
} peer_cipher;

EXPORT void peer_cipher_free(peer_cipher *c) {
    if (!c)
        return;
    if (c->ctx)
        c->ossl->ctx_free(c->ctx);
    if (c->fetched)
        c->ossl->cipher_free(c->fetched);
    if (c->handle)
        gcry.close(c->handle);
    free(c->tag);
    free(c);
}

static peer_cipher *cipher_new(int which, int tagged, int encrypt) {
    peer_cipher *c = calloc(1, sizeof *c);
    if (c) {
        c->which = which;
        c->tagged = tagged;
        c->encrypt = encrypt;
    }
    return c;
}

/* OpenSSL's cipher of that name: XTS, or GCM (tagged). NULL if it has none, or on failure. */
EXPORT peer_cipher *peer_openssl_new(const openssl *o, const char *name, int tagged, int encrypt,
                                     const uint8_t *key) {
    static const uint8_t zero[16];
    peer_cipher *c = cipher_new(PEER_OPENSSL, tagged, encrypt);
    if (!c)
        return NULL;
    c->ossl = o;
    if (o->fetch)
        c->fetched = o->fetch(NULL, name, NULL);
    const EVP_CIPHER *cipher = c->fetched ? c->fetched : o->by_name(name);
    c->ctx = cipher ? o->ctx_new() : NULL;
    if (c->ctx && o->init(c->ctx, cipher, NULL, key, zero, encrypt) == 1)
        return c;
    peer_cipher_free(c);
    return NULL;
}

/* libgcrypt's cipher and mode of those numbers: XTS, or GCM (tagged). NULL if it has none, or on
 * failure. */
EXPORT peer_cipher *peer_libgcrypt_new(int algorithm, int mode, int tagged, int encrypt,
                                       const uint8_t *key, size_t key_len) {
    peer_cipher *c = cipher_new(PEER_LIBGCRYPT, tagged, encrypt);
    if (!c)
        return NULL;
    if (!gcry.open(&c->handle, algorithm, mode, 0) && !gcry.setkey(c->handle, key, key_len))
        return c;
    peer_cipher_free(c);
    return NULL;
}

/* A variant of AEGIS through two functions of a libaegis that is in the process already and
 * initialised. NULL on failure. */
EXPORT peer_cipher *peer_aegis_new(aegis_seal seal, aegis_open open, int encrypt,
                                   const uint8_t *key, size_t key_len) {
    peer_cipher *c = key_len <= MAX_KEY ? cipher_new(PEER_LIBAEGIS, 1, encrypt) : NULL;
    if (!c)
        return NULL;
    c->seal = seal;
    c->open = open;
    memcpy(c->key, key, key_len);
    return c;
}

/* libgcrypt knows "in place" by a NULL input. */
static int gcry_crypt(peer_cipher *c, int encrypt, const uint8_t *in, uint8_t *out, size_t n) {
    return !(encrypt ? gcry.encrypt : gcry.decrypt)(c->handle, out, n, in == out ? NULL : in,
                                                    in == out ? 0 : n);
}

static int xts_page(peer_cipher *c, const uint8_t tweak[16], const uint8_t *in, uint8_t *out,
                    size_t page_size) {
    int n;
    if (c->which == PEER_OPENSSL)
        return c->ossl->init(c->ctx, NULL, NULL, NULL, tweak, -1) == 1 &&
               c->ossl->update(c->ctx, out, &n, in, (int)page_size) == 1 && n == (int)page_size;
    return !gcry.setiv(c->handle, tweak, 16) && gcry_crypt(c, c->encrypt, in, out, page_size);
}

static int ossl_gcm_page(peer_cipher *c, int encrypt, const uint8_t nonce[12], const uint8_t *in,
                         uint8_t *out, size_t page_size, uint8_t tag[TAG_SIZE]) {
    const openssl *o = c->ossl;
    int n, rest;
    if (o->init(c->ctx, NULL, NULL, NULL, nonce, encrypt) != 1)
        return 0;
    if (!encrypt && o->control(c->ctx, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, tag) != 1)
        return 0;
    if (o->update(c->ctx, out, &n, in, (int)page_size) != 1 || n != (int)page_size ||
        o->final(c->ctx, out + n, &rest) != 1)
        return 0;
    return !encrypt || o->control(c->ctx, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, tag) == 1;
}

static int gcry_gcm_page(peer_cipher *c, int encrypt, const uint8_t nonce[12], const uint8_t *in,
                         uint8_t *out, size_t page_size, uint8_t tag[TAG_SIZE]) {
    if (gcry.setiv(c->handle, nonce, 12) || !gcry_crypt(c, encrypt, in, out, page_size))
        return 0;
    return !(encrypt ? gcry.gettag(c->handle, tag, TAG_SIZE)
                     : gcry.checktag(c->handle, tag, TAG_SIZE));
}

static int aegis_page(peer_cipher *c, int encrypt, const uint8_t *nonce, const uint8_t *in,
                      uint8_t *out, size_t page_size, uint8_t tag[TAG_SIZE]) {
    if (encrypt)
        return !c->seal(out, tag, TAG_SIZE, in, page_size, NULL, 0, nonce, c->key);
    return !c->open(out, in, page_size, tag, TAG_SIZE, NULL, 0, nonce, c->key);
}

/* Page p under the number p + 2^64 (version 1), little-endian, of which a tweak or nonce takes as
 * many bytes as it has. 0 when the library reports an error or refuses a tag. */
static int pass(peer_cipher *c, int encrypt, const uint8_t *in, uint8_t *out, size_t page_size,
                uint64_t npages) {
    for (uint64_t p = 0; p < npages; p++, in += page_size, out += page_size) {
        uint8_t number[MAX_NONCE] = {[8] = 1};
        for (int i = 0; i < 8; i++)
            number[i] = (uint8_t)(p >> (8 * i));
        int ok = !c->tagged ? xts_page(c, number, in, out, page_size)
                 : c->which == PEER_OPENSSL
                     ? ossl_gcm_page(c, encrypt, number, in, out, page_size, c->tag[p])
                 : c->which == PEER_LIBGCRYPT
                     ? gcry_gcm_page(c, encrypt, number, in, out, page_size, c->tag[p])
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
    if (!c->tagged)
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
    if (c->tagged && npages > c->ntags)
        return -1;
    double start = now();
    for (uint64_t r = 0; r < repeats; r++) {
        if (!pass(c, c->encrypt, in, out, page_size, npages))
            return -1;
    }
    return now() - start;
}
