/* SPDX-License-Identifier: Apache-2.0
 *
 * The library's code under memcheck with keys and plaintext marked secret. One subject and one tier
 * a run: subjects NAME TIER; without arguments the names are listed. run.py builds and runs this.
 *
 * What becomes public, and where: ciphertext and tags, which the store keeps in the open, after
 * they were sealed (here); the answers that DECLASSIFY marks in csrc/, each with its reason.
 * Lengths, offsets, page numbers, versions, nonces and tweak numbers are never secret.
 */
#include "ct.h"

#include <math.h>
#include <sys/random.h>
#include <unistd.h>

#include "crypto/aegis256/aegis256.h"
#include "crypto/aes/bitslice.h"
#include "crypto/aes/keywrap.h"
#include "crypto/aes_gcm/aes_gcm.h"
#include "crypto/gf128/portable.h"
#include "crypto/sm3/sm3.h"
#include "crypto/sm4/sm4.h"
#include "crypto/sm4_gcm/sm4_gcm.h"
#include "platform/cpu.h"
#include "tiers/tiers.h"

static ccmem_tier tier;

enum { SEED_PLAIN = 1, SEED_KEY, SEED_PUBLIC, SEED_MORE };

/* ---- where root keys come from --------------------------------------------------------------- */

/* memcheck takes whatever a system call delivers for defined; the linker puts these in between. */
ssize_t __real_read(int fd, void *p, size_t n);
ssize_t __real_getrandom(void *p, size_t n, unsigned flags);
ssize_t __wrap_read(int fd, void *p, size_t n);
ssize_t __wrap_getrandom(void *p, size_t n, unsigned flags);

ssize_t __wrap_read(int fd, void *p, size_t n) {
    ssize_t got = __real_read(fd, p, n);
    if (got > 0)
        make_secret(p, (size_t)got);
    return got;
}

ssize_t __wrap_getrandom(void *p, size_t n, unsigned flags) {
    ssize_t got = __real_getrandom(p, n, flags);
    if (got > 0)
        make_secret(p, (size_t)got);
    return got;
}

/* A store under the key gives secret ciphertext: so the key was secret in there as well. */
static void check_key(ccmem_key *key) {
    uint8_t zeros[CCMEM_PAGE_SIZE_MIN] = {0};
    ccmem_mapping *mapping;
    ccmem_store *store;

    REQUIRE(!ccmem_store_new(key, CCMEM_AES_128_XTS, sizeof zeros, sizeof zeros, 0, 0,
                             CCMEM_FRESH_NOT, &store));
    REQUIRE(!ccmem_store_write(store, 0, zeros, sizeof zeros));
    mapping = ccmem_store_mapping(store);
    REQUIRE(is_secret(ccmem_mapping_data(mapping), sizeof zeros));
    ccmem_mapping_release(mapping);
    ccmem_store_free(store);
    ccmem_key_free(key);
}

static ccmem_status key_from_file(const char *content, size_t n, ccmem_key **key) {
    FILE *file = tmpfile();
    ccmem_status status;

    REQUIRE(file && fwrite(content, 1, n, file) == n && !fflush(file));
    rewind(file);
    status = ccmem_key_from_fd(fileno(file), CCMEM_SECRET_MLOCK, key);
    fclose(file);
    return status;
}

static void keys(void) {
    static const char digits[] = "00112233445566778899aabbccddeeff"
                                 "FFEEDDCCBBAA99887766554433221100\n";
    static const char wrong[] = "00112233445566778899aabbccddeeff"
                                "/:@G`g\xff ccBBAA998877665544332211";
    uint8_t raw[CCMEM_ROOT_KEY_SIZE];
    ccmem_key *key;

    fill_secret(raw, sizeof raw, SEED_KEY);
    REQUIRE(!ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, &key));
    check_key(key);
    REQUIRE(!ccmem_key_generate(CCMEM_SECRET_MLOCK, &key));
    check_key(key);
    REQUIRE(!key_from_file(digits, 32, &key));
    check_key(key);
    REQUIRE(!key_from_file(digits, 64, &key));
    check_key(key);
    REQUIRE(!key_from_file(digits, 65, &key));
    check_key(key);
    REQUIRE(key_from_file(wrong, 64, &key) == CCMEM_ERR_KEYFILE);
}

/* ---- AES, CMAC, key derivation --------------------------------------------------------------- */

static void aes(void) {
    for (size_t key_len = 16; key_len <= 32; key_len += 8) {
        uint8_t key[32], plain[BS_BYTES + AES_BLOCK], sealed[sizeof plain];
        aes_key enc, dec;

        fill_secret(key, key_len, SEED_KEY);
        fill_secret(plain, sizeof plain, SEED_PLAIN);
        aes_expand(&enc, key, key_len);
        aes_invert(&dec, &enc);
        REQUIRE(is_secret(enc.rk, (enc.rounds + 1) * AES_BLOCK));
        REQUIRE(is_secret(dec.rk, (dec.rounds + 1) * AES_BLOCK));
        tier_kernels_of(tier).aes->encrypt(&enc, sealed, plain, BS_BLOCKS + 1);
        REQUIRE(is_secret(sealed, sizeof sealed));
        bs_decrypt8(&enc, sealed, sealed);
        REQUIRE(is_secret(sealed, BS_BYTES));
        make_public(sealed, sizeof sealed);
        REQUIRE(is_filled(sealed, BS_BYTES, SEED_PLAIN));
        tier_kernels_of(tier).aes->encrypt(&enc, sealed, plain, 3);
        REQUIRE(is_secret(sealed, 3 * AES_BLOCK));
    }
}

static void kdf(void) {
    for (size_t key_len = 16; key_len <= 32; key_len += 8)
        for (size_t n = 0; n <= 40; n += 8) {
            uint8_t key[32], msg[40], tag[16];
            fill_secret(key, sizeof key, SEED_KEY);
            fill_secret(msg, sizeof msg, SEED_PLAIN);
            REQUIRE(!ccmem_cmac(tier, key, key_len, msg, n, tag));
            REQUIRE(is_secret(tag, sizeof tag));
        }
    for (size_t key_len = 16; key_len <= 32; key_len += 16) {
        uint8_t key[32], context[20], out[64];
        fill_secret(key, sizeof key, SEED_KEY);
        fill(context, sizeof context, SEED_PUBLIC);
        REQUIRE(!ccmem_kdf(tier, key, key_len, (const uint8_t *)"ct", 2, context, sizeof context,
                           out, sizeof out - 5));
        REQUIRE(is_secret(out, sizeof out - 5));
    }
}

/* ---- keys of files ----------------------------------------------------------------------------
 */

static void key_wrap(void) {
    for (size_t key_len = 16; key_len <= 32; key_len += 8)
        for (size_t n = KEYWRAP_MIN; n <= 40; n += KEYWRAP_UNIT) {
            uint8_t key[32], plain[40], wrapped[48], got[40];
            fill_secret(key, sizeof key, SEED_KEY);
            fill_secret(plain, sizeof plain, SEED_PLAIN);
            REQUIRE(!ccmem_aes_kw(tier, 1, key, key_len, plain, n, wrapped));
            REQUIRE(is_secret(wrapped, n + KEYWRAP_UNIT));
            make_public(wrapped, n + KEYWRAP_UNIT);
            REQUIRE(!ccmem_aes_kw(tier, 0, key, key_len, wrapped, n + KEYWRAP_UNIT, got));
            REQUIRE(is_secret(got, n));
            make_public(got, n);
            REQUIRE(is_filled(got, n, SEED_PLAIN));
            wrapped[n] ^= 1;
            REQUIRE(ccmem_aes_kw(tier, 0, key, key_len, wrapped, n + KEYWRAP_UNIT, got) ==
                    CCMEM_ERR_INTEGRITY);
        }
}

/* A root key wraps a data key, names it, and makes a tag with it. */
static void file_keys(void) {
    uint8_t raw[32], wrapped[CCMEM_WRAPPED_KEY_SIZE], context[16], msg[50], out[32];
    ccmem_key *root, *data, *again, *own;

    fill_secret(raw, sizeof raw, SEED_KEY);
    fill(context, sizeof context, SEED_PUBLIC);
    fill(msg, sizeof msg, SEED_PUBLIC);
    REQUIRE(!ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, &root));
    REQUIRE(!ccmem_key_generate(CCMEM_SECRET_MLOCK, &data));
    REQUIRE(!ccmem_key_wrap(root, data, wrapped));
    REQUIRE(is_secret(wrapped, sizeof wrapped));
    make_public(wrapped, sizeof wrapped);
    REQUIRE(!ccmem_key_unwrap(root, wrapped, CCMEM_SECRET_MLOCK, &again));
    REQUIRE(!ccmem_key_copy(again, out));
    REQUIRE(is_secret(out, sizeof out));
    REQUIRE(!ccmem_key_id(again, out));
    REQUIRE(is_secret(out, CCMEM_KEY_ID_SIZE));
    for (int by_sm4 = 0; by_sm4 < 2; by_sm4++) {
        const ccmem_cipher cipher = by_sm4 ? CCMEM_SM4_GCM : CCMEM_AEGIS_128X2;
        REQUIRE(!ccmem_key_mac(again, cipher, context, msg, sizeof msg, out));
        REQUIRE(is_secret(out, CCMEM_MAC_SIZE));
    }
    fill(out, sizeof out, SEED_PUBLIC);
    REQUIRE(!ccmem_key_for_context(root, out, &own));
    check_key(own);
    ccmem_key_free(data);
    ccmem_key_free(root);
    check_key(again);
}

/* ---- XTS ------------------------------------------------------------------------------------- */

enum { TEXT = 3 * 8192 };
static _Alignas(64) uint8_t plain[TEXT + 64], sealed[TEXT + 64], opened[TEXT + 64];

/* The bytes opened must be secret, and right. */
static void check_opened(const uint8_t *p, size_t n, unsigned seed) {
    REQUIRE(is_secret(p, n));
    make_public(p, n);
    REQUIRE(is_filled(p, n, seed));
}

static void check_sealed(const void *p, size_t n) {
    REQUIRE(is_secret(p, n));
    make_public(p, n);
}

static void gf128_arithmetic(void) {
    static const size_t jumps[] = {0, 1, 63, 64, 65, 127, 128, 300};
    uint8_t block[16];

    for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
        fill_secret(block, sizeof block, SEED_KEY);
        gf128_store(block, gf128_jump(gf128_double(gf128_load(block)), jumps[i]));
        REQUIRE(is_secret(block, sizeof block));
    }
}

static void xts_units(void) {
    static const size_t lengths[] = {16, 17, 31, 32, 48, 63, 64, 65, 127, 128, 200, 513, 5000};
    uint8_t key[64], tweak[16];

    fill(tweak, sizeof tweak, SEED_PUBLIC);
    for (size_t key_len = 32; key_len <= 64; key_len += 32) {
        fill_secret(key, sizeof key, SEED_KEY);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            size_t n = lengths[i];
            fill_secret(plain, n, SEED_PLAIN);
            REQUIRE(!ccmem_xts(tier, 1, key, key_len, tweak, plain, sealed, n));
            check_sealed(sealed, n);
            REQUIRE(!ccmem_xts(tier, 0, key, key_len, tweak, sealed, opened, n));
            check_opened(opened, n, SEED_PLAIN);
        }
        /* Equal halves: the answer is public, the halves are not. */
        fill(key, key_len / 2, SEED_KEY);
        memcpy(key + key_len / 2, key, key_len / 2);
        make_secret(key, key_len);
        REQUIRE(ccmem_xts(tier, 1, key, key_len, tweak, plain, sealed, 16) ==
                CCMEM_ERR_EQUAL_HALVES);
    }
}

static void xts_page_kernels(const xts_key *key, size_t page_size, size_t misalign,
                             unsigned flags) {
    const xts_ops *ops = tier_kernels_of(tier).xts;
    const size_t npages = 3, n = npages * page_size;
    uint8_t t0[3][16];

    fill(t0, sizeof t0, SEED_PUBLIC);
    ops->tweaks(key, t0, npages);
    REQUIRE(is_secret(t0, sizeof t0));
    fill_secret(plain, n, SEED_PLAIN);
    ops->seal_pages(key, sealed + misalign, plain, npages, page_size, (const uint8_t (*)[16])t0,
                    flags);
    check_sealed(sealed + misalign, n);
    ops->open_pages(key, opened + misalign, sealed + misalign, npages, page_size,
                    (const uint8_t (*)[16])t0, flags);
    check_opened(opened + misalign, n, SEED_PLAIN);
}

static void xts_block_kernels(const xts_key *key) {
    static const uint32_t firsts[] = {0, 1, 250, 256, 1000, 4090, 70001, (1u << 20) - 40};
    static const size_t counts[] = {1, 3, 4, 9, 33};
    const xts_ops *ops = tier_kernels_of(tier).xts;

    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++)
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            uint8_t t0[1][16];
            size_t n = counts[k] * AES_BLOCK;
            fill(t0, sizeof t0, SEED_PUBLIC);
            ops->tweaks(key, t0, 1);
            fill_secret(plain, n, SEED_PLAIN);
            ops->seal_blocks(key, sealed, plain, counts[k], firsts[i], xts_tweak_load(*t0));
            check_sealed(sealed, n);
            ops->open_blocks(key, opened, sealed, counts[k], firsts[i], xts_tweak_load(*t0));
            check_opened(opened, n, SEED_PLAIN);
        }
}

static void xts_kernels(void) {
    uint8_t raw[64], t0[33][16];
    xts_key key;

    for (size_t key_len = 32; key_len <= 64; key_len += 32) {
        fill_secret(raw, sizeof raw, SEED_KEY);
        REQUIRE(!xts_expand(&key, raw, key_len));
        fill(t0, sizeof t0, SEED_PUBLIC);
        tier_kernels_of(tier).xts->tweaks(&key, t0, 33);
        REQUIRE(is_secret(t0, sizeof t0));
        xts_page_kernels(&key, 4096, 0, 0);
        xts_page_kernels(&key, 4096, 16, XTS_STREAM);
        xts_page_kernels(&key, 8192, 1, 0);
        xts_block_kernels(&key);
    }
}

/* ---- SM4 and SM3 ------------------------------------------------------------------------------
 */

static void sm4_blocks(void) {
    static const size_t counts[] = {1, 4, 9, 33, 77};
    uint8_t key[32], context[20], out[40];
    sm4_key expanded;

    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        size_t n = counts[i] * SM4_BLOCK;
        fill_secret(key, SM4_KEY_SIZE, SEED_KEY);
        fill_secret(plain, n, SEED_PLAIN);
        sm4_expand(&expanded, key);
        REQUIRE(is_secret(&expanded, sizeof expanded));
        tier_kernels_of(tier).sm4->blocks(&expanded, 0, sealed, plain, counts[i]);
        check_sealed(sealed, n);
        tier_kernels_of(tier).sm4->blocks(&expanded, 1, opened, sealed, counts[i]);
        check_opened(opened, n, SEED_PLAIN);
    }
    fill_secret(key, sizeof key, SEED_KEY);
    fill(context, sizeof context, SEED_PUBLIC);
    kdf_counter_sm3(key, sizeof key, (const uint8_t *)"ct", 2, context, sizeof context, out,
                    sizeof out);
    REQUIRE(is_secret(out, sizeof out));
    fill_secret(plain, 200, SEED_PLAIN);
    hmac_sm3(key, sizeof key, plain, 200, out);
    REQUIRE(is_secret(out, SM3_SIZE));
}

static void sm4_units(void) {
    static const size_t lengths[] = {16, 17, 63, 64, 200, 513, 5000};
    uint8_t key[32], tweak[16];

    fill(tweak, sizeof tweak, SEED_PUBLIC);
    for (int ieee = 0; ieee < 2; ieee++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            fill_secret(key, sizeof key, SEED_KEY);
            fill_secret(plain, lengths[i], SEED_PLAIN);
            REQUIRE(!ccmem_sm4_xts(tier, 1, ieee, key, tweak, plain, sealed, lengths[i]));
            check_sealed(sealed, lengths[i]);
            REQUIRE(!ccmem_sm4_xts(tier, 0, ieee, key, tweak, sealed, opened, lengths[i]));
            check_opened(opened, lengths[i], SEED_PLAIN);
        }
}

/* ---- AEGIS ----------------------------------------------------------------------------------- */

static void aegis_message(unsigned lanes, size_t n, size_t ad_len, size_t tag_len) {
    uint8_t key[16], nonce[16], ad[100], tag[32];

    fill_secret(key, sizeof key, SEED_KEY);
    fill(nonce, sizeof nonce, SEED_PUBLIC);
    fill_secret(ad, sizeof ad, SEED_MORE);
    fill_secret(plain, n, SEED_PLAIN);
    REQUIRE(
        !ccmem_aegis_encrypt(tier, lanes, key, nonce, ad, ad_len, plain, sealed, n, tag, tag_len));
    check_sealed(sealed, n);
    check_sealed(tag, tag_len);
    REQUIRE(
        !ccmem_aegis_decrypt(tier, lanes, key, nonce, ad, ad_len, sealed, opened, n, tag, tag_len));
    check_opened(opened, n, SEED_PLAIN);
    tag[tag_len - 1] ^= 0x80;
    REQUIRE(ccmem_aegis_decrypt(tier, lanes, key, nonce, ad, ad_len, sealed, opened, n, tag,
                                tag_len) == CCMEM_ERR_INTEGRITY);
    REQUIRE(is_zero(opened, n));
}

static void aegis256_message(unsigned lanes, size_t n, size_t ad_len, size_t tag_len) {
    uint8_t key[32], nonce[32], ad[100], tag[32];

    fill_secret(key, sizeof key, SEED_KEY);
    fill(nonce, sizeof nonce, SEED_PUBLIC);
    fill_secret(ad, sizeof ad, SEED_MORE);
    fill_secret(plain, n, SEED_PLAIN);
    REQUIRE(!ccmem_aegis256_encrypt(tier, lanes, key, nonce, ad, ad_len, plain, sealed, n, tag,
                                    tag_len));
    check_sealed(sealed, n);
    check_sealed(tag, tag_len);
    REQUIRE(!ccmem_aegis256_decrypt(tier, lanes, key, nonce, ad, ad_len, sealed, opened, n, tag,
                                    tag_len));
    check_opened(opened, n, SEED_PLAIN);
    tag[tag_len - 1] ^= 0x80;
    REQUIRE(ccmem_aegis256_decrypt(tier, lanes, key, nonce, ad, ad_len, sealed, opened, n, tag,
                                   tag_len) == CCMEM_ERR_INTEGRITY);
    REQUIRE(is_zero(opened, n));
}

static void aegis_messages(void) {
    static const size_t lengths[] = {0, 1, 16, 31, 32, 33, 63, 64, 65, 127, 128, 1000};
    static const size_t ad_lengths[] = {0, 5, 32, 64, 100};

    for (unsigned lanes = 1; lanes <= 2; lanes++)
        for (size_t tag_len = 16; tag_len <= 32; tag_len += 16)
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
                aegis_message(lanes, lengths[i], ad_lengths[i % 5], tag_len);
}

static void aegis256_messages(void) {
    static const size_t lengths[] = {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000};
    static const size_t ad_lengths[] = {0, 5, 32, 64, 100};

    for (unsigned lanes = 1; lanes <= 2; lanes++)
        for (size_t tag_len = 16; tag_len <= 32; tag_len += 16)
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
                aegis256_message(lanes, lengths[i], ad_lengths[i % 5], tag_len);
}

/* One bit of the second page's tag is wrong: its plaintext must be gone, the others' must not. */
static void aegis_bad_page(const aegis_ops *ops, const uint8_t *key, const uint8_t *text,
                           size_t page_size, const uint8_t (*nonce)[16], uint8_t (*tag)[16]) {
    const uint8_t *in = text + page_size;

    tag[1][15] ^= 1;
    REQUIRE(ops->open_pages(key, opened, text, 3, page_size, nonce, (const uint8_t (*)[16])tag,
                            0) == 2);
    REQUIRE(is_zero(opened + page_size, page_size));
    REQUIRE(is_secret(opened, page_size) && is_secret(opened + 2 * page_size, page_size));
    REQUIRE(!ops->open_part(key, opened, in, page_size, nonce[1], tag[1], 100, 500, 0));
    REQUIRE(is_zero(opened, 500));
}

static void aegis_page_kernels(const aegis_ops *ops, size_t page_size, size_t misalign,
                               unsigned flags) {
    static const size_t parts[][2] = {{0, 1},   {0, 64},     {64, 128}, {5, 20},
                                      {30, 70}, {1000, 999}, {4095, 1}, {0, 0}};
    const size_t npages = 3, n = npages * page_size;
    uint8_t key[32], nonce[3][16], tag[3][16], *text = sealed + misalign;

    fill_secret(key, sizeof key, SEED_KEY);
    fill(nonce, sizeof nonce, SEED_PUBLIC);
    fill_secret(plain, n, SEED_PLAIN);
    ops->seal_pages(key, text, plain, npages, page_size, (const uint8_t (*)[16])nonce, tag, flags);
    check_sealed(text, n);
    check_sealed(tag, sizeof tag);
    REQUIRE(!ops->open_pages(key, opened + misalign, text, npages, page_size,
                             (const uint8_t (*)[16])nonce, (const uint8_t (*)[16])tag, flags));
    check_opened(opened + misalign, n, SEED_PLAIN);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t offset = parts[i][0], size = parts[i][1];
        make_public(plain, n);
        REQUIRE(ops->open_part(key, opened, text, page_size, nonce[0], tag[0], offset, size,
                               AEGIS_LAST));
        REQUIRE(is_secret(opened, size));
        make_public(opened, size);
        REQUIRE(!memcmp(opened, plain + offset, size));
    }
    for (size_t i = 0; i < npages; i++) {
        REQUIRE(ops->open_next(key, opened, text + i * page_size, page_size, nonce[i], tag[i], text,
                               text));
        REQUIRE(is_secret(opened, page_size));
    }
    aegis_bad_page(ops, key, text, page_size, (const uint8_t (*)[16])nonce, tag);
}

static void aegis_pages(void) {
    const aegis_ops *tables[] = {
        tier_kernels_of(tier).aegis,
#if CCMEM_X86
        tier == CCMEM_TIER_AESNI ? &aegis_aesni : NULL, /* for processors without AVX2 */
#endif
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (tables[i]) {
            aegis_page_kernels(tables[i], 4096, 0, 0);
            aegis_page_kernels(tables[i], 4096, 32, AEGIS_STREAM);
            aegis_page_kernels(tables[i], 8192, 1, 0);
        }
}

static void aegis256_pages(void) {
    const aegis_ops *tables[] = {
        tier_kernels_of(tier).aegis256,
#if CCMEM_X86
        tier == CCMEM_TIER_AESNI ? &aegis256_aesni : NULL, /* for processors without AVX2 */
#endif
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (tables[i]) {
            aegis_page_kernels(tables[i], 4096, 0, 0);
            aegis_page_kernels(tables[i], 4096, 32, AEGIS_STREAM);
            aegis_page_kernels(tables[i], 8192, 1, 0);
        }
}

/* ---- GCM ------------------------------------------------------------------------------------- */

/* Nonces that are hashed are public; what becomes of them is not. */
static void gcm_messages(void) {
    static const size_t lengths[] = {0, 1, 15, 16, 17, 128, 300};
    uint8_t key[32], iv[30], ad[100], tag[16];

    for (size_t key_len = 16; key_len <= 32; key_len += 8)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            const size_t n = lengths[i], iv_len = i % 2 ? 12 : 5 + i, ad_len = 14 * i;
            fill_secret(key, sizeof key, SEED_KEY);
            fill(iv, sizeof iv, SEED_PUBLIC);
            fill_secret(ad, sizeof ad, SEED_MORE);
            fill_secret(plain, n, SEED_PLAIN);
            REQUIRE(!ccmem_aes_gcm_encrypt(tier, key, key_len, iv, iv_len, ad, ad_len, plain,
                                           sealed, n, tag, 16));
            check_sealed(sealed, n);
            check_sealed(tag, 16);
            REQUIRE(!ccmem_aes_gcm_decrypt(tier, key, key_len, iv, iv_len, ad, ad_len, sealed,
                                           opened, n, tag, 16));
            check_opened(opened, n, SEED_PLAIN);
            tag[15] ^= 1;
            REQUIRE(ccmem_aes_gcm_decrypt(tier, key, key_len, iv, iv_len, ad, ad_len, sealed,
                                          opened, n, tag, 16) == CCMEM_ERR_INTEGRITY);
            REQUIRE(is_zero(opened, n));
        }
}

static void gcm_page_kernels(const gcm_ops *ops, const void *key, size_t page_size, size_t misalign,
                             unsigned flags) {
    static const size_t parts[][2] = {{0, 1}, {0, 64}, {64, 512}, {30, 70}, {4095, 1}, {0, 0}};
    const size_t npages = 3, n = npages * page_size;
    uint8_t tag[3][16], *text = sealed + misalign;
    gcm_place place[3];

    fill((uint8_t *)place, sizeof place, SEED_PUBLIC);
    for (size_t i = 0; i < npages; i++)
        memset(place[i].unused, 0, sizeof place[i].unused);
    fill_secret(plain, n, SEED_PLAIN);
    ops->seal_pages(key, text, plain, npages, page_size, place, tag, flags);
    check_sealed(text, n);
    check_sealed(tag, sizeof tag);
    REQUIRE(!ops->open_pages(key, opened + misalign, text, npages, page_size, place,
                             (const uint8_t (*)[16])tag, flags));
    check_opened(opened + misalign, n, SEED_PLAIN);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t offset = parts[i][0], size = parts[i][1];
        make_public(plain, n);
        REQUIRE(
            ops->open_part(key, opened, text, page_size, place, tag[0], offset, size, GCM_LAST));
        REQUIRE(is_secret(opened, size));
        make_public(opened, size);
        REQUIRE(!memcmp(opened, plain + offset, size));
    }
    tag[1][15] ^= 1;
    REQUIRE(ops->open_pages(key, opened, text, 3, page_size, place, (const uint8_t (*)[16])tag,
                            0) == 2);
    REQUIRE(is_zero(opened + page_size, page_size));
    REQUIRE(
        !ops->open_part(key, opened, text + page_size, page_size, place + 1, tag[1], 100, 500, 0));
    REQUIRE(is_zero(opened, 500));
}

static void gcm_pages(void) {
    uint8_t raw[32];
    aes_gcm_key key;

    fill_secret(raw, sizeof raw, SEED_KEY);
    aes_gcm_expand(&key, raw, sizeof raw);
    REQUIRE(is_secret(&key.hash, sizeof key.hash));
    gcm_page_kernels(tier_kernels_of(tier).aes_gcm, &key, 4096, 0, 0);
    gcm_page_kernels(tier_kernels_of(tier).aes_gcm, &key, 4096, 32, GCM_STREAM);
    gcm_page_kernels(tier_kernels_of(tier).aes_gcm, &key, 4096 + 192, 1, 0);
}

static void sm4_gcm(void) {
    static const size_t lengths[] = {0, 1, 15, 16, 17, 128, 300};
    uint8_t raw[SM4_KEY_SIZE], iv[30], ad[100], tag[16];
    sm4_gcm_key key;

    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        const size_t n = lengths[i], iv_len = i % 2 ? 12 : 5 + i, ad_len = 14 * i;
        fill_secret(raw, sizeof raw, SEED_KEY);
        fill(iv, sizeof iv, SEED_PUBLIC);
        fill_secret(ad, sizeof ad, SEED_MORE);
        fill_secret(plain, n, SEED_PLAIN);
        REQUIRE(!ccmem_sm4_gcm_encrypt(tier, raw, sizeof raw, iv, iv_len, ad, ad_len, plain, sealed,
                                       n, tag, 16));
        check_sealed(sealed, n);
        check_sealed(tag, 16);
        REQUIRE(!ccmem_sm4_gcm_decrypt(tier, raw, sizeof raw, iv, iv_len, ad, ad_len, sealed,
                                       opened, n, tag, 16));
        check_opened(opened, n, SEED_PLAIN);
    }
    fill_secret(raw, sizeof raw, SEED_KEY);
    sm4_gcm_expand(&key, raw);
    REQUIRE(is_secret(&key.hash, sizeof key.hash));
    gcm_page_kernels(tier_kernels_of(tier).sm4_gcm, &key, 4096, 0, 0);
    gcm_page_kernels(tier_kernels_of(tier).sm4_gcm, &key, 4096, 32, GCM_STREAM);
    gcm_page_kernels(tier_kernels_of(tier).sm4_gcm, &key, 4096 + 192, 1, 0);
}

/* ---- the real objects ------------------------------------------------------------------------ */

enum { STORE_PAGES = 5 };

/* What lies in the open becomes public. */
static void publish_store(ccmem_store *store, ccmem_cipher cipher) {
    ccmem_mapping *mapping = ccmem_store_mapping(store);
    uint64_t *versions;
    uint8_t *tags;

    make_public(ccmem_mapping_data(mapping), ccmem_mapping_size(mapping));
    ccmem_mapping_release(mapping);
    if (ccmem_cipher_authenticated(cipher)) {
        REQUIRE(!ccmem_store_records(store, &versions, &tags));
        make_public(tags, (size_t)16 * STORE_PAGES);
    }
}

static void write_secret(ccmem_store *store, ccmem_cipher cipher, uint64_t offset, size_t n) {
    make_secret(plain + offset, n);
    REQUIRE(!ccmem_store_write(store, offset, plain + offset, n));
    publish_store(store, cipher);
}

static void read_secret(ccmem_store *store, uint64_t offset, size_t n) {
    REQUIRE(!ccmem_store_read(store, offset, opened, n));
    REQUIRE(is_secret(opened, n));
    make_public(opened, n);
    make_public(plain + offset, n);
    REQUIRE(!memcmp(opened, plain + offset, n));
}

static void use_store(ccmem_store *store, ccmem_cipher cipher, size_t page_size) {
    static const uint64_t near[] = {8, 40, 1000, 1016}, far[] = {5, 5000, 12000};
    const size_t all = STORE_PAGES * page_size;
    uint8_t runs[3 * 8];

    fill(plain, all, SEED_PLAIN);
    write_secret(store, cipher, 0, all);                 /* whole pages */
    write_secret(store, cipher, 100, 64);                /* a part */
    write_secret(store, cipher, 4001, page_size + 1000); /* parts and a page */
    write_secret(store, cipher, 2 * page_size + 16, 1);
    for (int again = 0; again < 2; again++) { /* the second time from the tweak cache */
        read_secret(store, 0, all);
        read_secret(store, 64, 64);
        read_secret(store, 77, 5);
        read_secret(store, 333, 1000);
        read_secret(store, page_size - 7, page_size + 100);
    }
    fill(runs, sizeof runs, SEED_MORE);
    make_secret(runs, sizeof runs);
    REQUIRE(!ccmem_store_scatter(store, near, 4, 6, runs));
    publish_store(store, cipher);
    REQUIRE(!ccmem_store_gather(store, near, 4, 6, opened));
    check_opened(opened, 24, SEED_MORE);
    REQUIRE(!ccmem_store_scatter(store, far, 3, 8, runs));
    publish_store(store, cipher);
    REQUIRE(!ccmem_store_gather(store, far, 3, 8, opened));
    check_opened(opened, 24, SEED_MORE);
}

/* Another key: pages moved by a write of a part, by the mover, and read half-way. */
static void rekey_store(ccmem_store *store, ccmem_cipher cipher, size_t page_size) {
    const size_t all = STORE_PAGES * page_size;
    uint64_t done;

    fill(plain, all, SEED_PLAIN);
    write_secret(store, cipher, 0, all);
    REQUIRE(!ccmem_store_rekey(store, NULL));
    write_secret(store, cipher, page_size + 100, 64);
    REQUIRE(!ccmem_store_move(store, 1, &done) && done == 1);
    publish_store(store, cipher);
    read_secret(store, 0, all);
    REQUIRE(!ccmem_store_move(store, STORE_PAGES, &done) && done == STORE_PAGES - 1);
    publish_store(store, cipher);
    read_secret(store, 0, all);
}

/* A changed page: refused as a whole and in part, found by the check of all. */
static void damage_store(ccmem_store *store, size_t page_size) {
    uint8_t *tags, bad[STORE_PAGES];
    uint64_t *versions, failures;

    REQUIRE(!ccmem_store_records(store, &versions, &tags));
    REQUIRE(!ccmem_store_verify(store, 0, STORE_PAGES, bad, &failures) && !failures);
    tags[16] ^= 1;
    REQUIRE(ccmem_store_read(store, 0, opened, 3 * page_size) == CCMEM_ERR_INTEGRITY);
    REQUIRE(is_zero(opened, 3 * page_size));
    REQUIRE(ccmem_store_read(store, page_size + 9, opened, 30) == CCMEM_ERR_INTEGRITY);
    REQUIRE(is_zero(opened, 30));
    REQUIRE(ccmem_store_write(store, page_size + 9, plain, 30) == CCMEM_ERR_INTEGRITY);
    REQUIRE(!ccmem_store_verify(store, 0, STORE_PAGES, bad, &failures));
    REQUIRE(failures == 1 && bad[1] && !bad[0]);
}

/* Pages that are sealed once: filled from secrets, as whole pages and as a part of the last one;
 * read like others. */
static void fill_store(const ccmem_key *key, ccmem_cipher cipher, uint32_t page_size) {
    const size_t n = (STORE_PAGES - 1) * page_size + 100;
    ccmem_store *s;

    REQUIRE(!ccmem_store_new(key, cipher, n, page_size, 0, 0, CCMEM_FRESH_ONCE, &s));
    fill_secret(plain, n, SEED_PLAIN);
    REQUIRE(!ccmem_store_fill(s, 0, plain, 2 * page_size));
    REQUIRE(!ccmem_store_fill(s, 2 * page_size, plain + 2 * page_size, n - 2 * page_size));
    publish_store(s, cipher);
    REQUIRE(!ccmem_store_read(s, 0, opened, n));
    check_opened(opened, n, SEED_PLAIN);
    REQUIRE(!ccmem_store_read(s, page_size + 9, opened, 30));
    REQUIRE(is_secret(opened, 30));
    if (ccmem_cipher_authenticated(cipher)) {
        uint8_t *tags;
        uint64_t *versions;
        REQUIRE(!ccmem_store_records(s, &versions, &tags) && !versions);
        tags[16] ^= 1;
        REQUIRE(ccmem_store_read(s, 0, opened, n) == CCMEM_ERR_INTEGRITY);
        REQUIRE(is_zero(opened, n));
    }
    ccmem_store_free(s);
}

static void store(ccmem_cipher cipher) {
    for (uint32_t cached = 0; cached <= STORE_PAGES; cached += STORE_PAGES) {
        const uint32_t page_size = 4096;
        uint8_t raw[CCMEM_ROOT_KEY_SIZE];
        ccmem_store *s;
        ccmem_key *key;

        fill_secret(raw, sizeof raw, SEED_KEY);
        REQUIRE(!ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, &key));
        REQUIRE(!ccmem_store_new(key, cipher, STORE_PAGES * page_size, page_size, 0, cached,
                                 CCMEM_FRESH_NOT, &s));
        use_store(s, cipher, page_size);
        rekey_store(s, cipher, page_size);
        if (ccmem_cipher_authenticated(cipher))
            damage_store(s, page_size);
        fill_store(key, cipher, page_size);
        ccmem_store_free(s);
        ccmem_key_free(key);
    }
}

static void store_aes_128_xts(void) { store(CCMEM_AES_128_XTS); }
static void store_aes_256_xts(void) { store(CCMEM_AES_256_XTS); }
static void store_aegis_128x2(void) { store(CCMEM_AEGIS_128X2); }
static void store_aes_256_gcm(void) { store(CCMEM_AES_256_GCM); }
static void store_aegis_256x2(void) { store(CCMEM_AEGIS_256X2); }
static void store_sm4_xts(void) { store(CCMEM_SM4_XTS); }
static void store_sm4_gcm(void) { store(CCMEM_SM4_GCM); }

/* ---- caches ---------------------------------------------------------------------------------- */

enum { HEADS = 2, SHARE = 3, ROW = 40, TOKENS = 150, SEQUENCES = 2 };

/* Ciphertext and tags of all sequences become public. */
static void publish_cache(ccmem_cache *cache) {
    static ccmem_cache_place place[4 * TOKENS];
    for (uint32_t s = 0; s < ccmem_cache_sequences(cache, 0); s++) {
        uint64_t n;
        REQUIRE(!ccmem_cache_places(cache, 0, s, place, 4 * TOKENS, &n) && n <= 4 * TOKENS);
        for (uint64_t i = 0; i < n; i++) {
            make_public(place[i].data, place[i].bytes);
            make_public(place[i].tag, 16);
        }
    }
}

/* Secret rows with numbers of a usual size: of random bits some would be no numbers. */
static void secret_rows(void *rows, size_t n, ccmem_dtype dtype) {
    for (size_t i = 0; i < n; i++) {
        const float value = (float)(i * 37 % 101) / 50 - 1;
        const uint16_t half = (uint16_t)(0x3c00 | (i * 37 & 0x83ff)),
                       brain = (uint16_t)(half | 0x0300);
        if (dtype == CCMEM_F32)
            ((float *)rows)[i] = value;
        else
            ((uint16_t *)rows)[i] = dtype == CCMEM_F16 ? half : brain;
    }
    make_secret(rows, n * (dtype == CCMEM_F32 ? 4 : 2));
}

static void append_secret(ccmem_cache *cache, ccmem_dtype dtype, uint64_t tokens) {
    const ccmem_dtype of = dtype == CCMEM_I8 ? CCMEM_F32 : dtype;
    static float rows[SEQUENCES * HEADS * ROW * TOKENS];
    const ccmem_cache_rows k = {rows, of, HEADS * ROW * TOKENS, ROW * TOKENS, ROW};
    ccmem_cache_rows v = k;
    secret_rows(rows, sizeof rows / sizeof *rows, of);
    v.head = ROW; /* other strides */
    v.token = HEADS * ROW;
    REQUIRE(!ccmem_cache_append(cache, 0, 0, SEQUENCES, tokens, &k, &v));
    publish_cache(cache);
}

static void attend_secret(ccmem_cache *cache, ccmem_dtype q_dtype, uint64_t rows, int all,
                          ccmem_status expected) {
    static float q[SEQUENCES * HEADS * SHARE * 30 * ROW], out[sizeof q / sizeof *q];
    static float mask[30 * TOKENS], sinks[HEADS * SHARE];
    ccmem_attention a = {.sequences = SEQUENCES,
                         .query_heads = HEADS * SHARE,
                         .rows = rows,
                         .q = q,
                         .q_dtype = q_dtype,
                         .q_sequence = HEADS * SHARE * 30 * ROW,
                         .q_head = 30 * ROW,
                         .q_row = ROW,
                         .out = out,
                         .out_sequence = HEADS * SHARE * 30 * ROW,
                         .out_head = 30 * ROW,
                         .out_row = ROW,
                         .scale = 0.15f,
                         .causal = 1};
    secret_rows(q, sizeof q / sizeof *q, q_dtype);
    if (all) {
        secret_rows(mask, sizeof mask / sizeof *mask, CCMEM_F32);
        secret_rows(sinks, HEADS * SHARE, CCMEM_F32);
        a.mask = mask;
        a.mask_row = TOKENS;
        a.mask_tokens = TOKENS;
        a.sinks = sinks;
        a.softcap = 2;
        a.window = 60;
    }
    REQUIRE(ccmem_cache_attend(cache, &a) == expected);
    const size_t n = ROW * (q_dtype == CCMEM_F32 ? sizeof(float) : sizeof(uint16_t));
    REQUIRE(expected ? is_zero((uint8_t *)out, n) : is_secret(out, n));
}

static void use_cache(ccmem_dtype dtype) {
    const ccmem_cache_layer layer = {dtype, HEADS, ROW, ROW};
    static const uint32_t beams[SEQUENCES] = {1, 1};
    static float got[HEADS * ROW * TOKENS];
    ccmem_cache_rows out = {got, dtype == CCMEM_I8 ? CCMEM_F32 : dtype, 0, ROW * TOKENS, ROW};
    ccmem_cache_place place;
    ccmem_cache *cache, *fork;
    uint32_t number;
    uint64_t n;

    REQUIRE(!ccmem_cache_new(SEQUENCES, CCMEM_SECRET_MLOCK, &cache));
    REQUIRE(!ccmem_cache_add_layer(cache, &layer, &number));
    append_secret(cache, dtype, 139);
    append_secret(cache, dtype, 1);
    for (int all = 0; all < 2; all++) {
        attend_secret(cache, CCMEM_F32, 1, all, CCMEM_OK);
        attend_secret(cache, CCMEM_F16, 2, all, CCMEM_OK);
        attend_secret(cache, CCMEM_BF16, 30, all, CCMEM_OK);
    }
    REQUIRE(!ccmem_cache_crop(cache, 0, 0, 37));
    publish_cache(cache);
    REQUIRE(!ccmem_cache_reorder(cache, 0, beams, SEQUENCES));
    REQUIRE(!ccmem_cache_fork(cache, &fork));
    append_secret(fork, dtype, 1);
    attend_secret(fork, CCMEM_F32, 1, 0, CCMEM_OK);
    ccmem_cache_free(fork);
    for (int which = 0; which < 2; which++) {
        REQUIRE(!ccmem_cache_read(cache, 0, 1, which, 3, 100, &out));
        REQUIRE(is_secret(got, ROW));
    }
    REQUIRE(!ccmem_cache_places(cache, 0, 1, &place, 1, &n));
    place.tag[3] ^= 1;
    attend_secret(cache, CCMEM_F32, 1, 0, CCMEM_ERR_INTEGRITY);
    attend_secret(cache, CCMEM_F32, 30, 0, CCMEM_ERR_INTEGRITY);
    ccmem_cache_free(cache);
}

static void caches(void) {
    use_cache(CCMEM_F32);
    use_cache(CCMEM_F16);
    use_cache(CCMEM_BF16);
    use_cache(CCMEM_I8);
}

/* ---- products of floats ---------------------------------------------------------------------- */

/* All ways to sum, of rows that are multiplied where they were opened or converted, as whole rows,
 * pieces and parts, cut by pages: W, x, scale and bias are secret, and any bits. A bias and x in
 * bfloat16 are converted as well. */
static void float_products_of(ccmem_dtype dtype, uint64_t in) {
    enum { OUT = 9, IN_MAX = 11000, ROWS_MAX = 50 };
    static const uint64_t counts[] = {1, 2, 7, 16, 50}; /* rows of x */
    static uint8_t raw[CCMEM_ROOT_KEY_SIZE], w[8 + OUT * IN_MAX * sizeof(float)];
    static float x[ROWS_MAX * IN_MAX], y[ROWS_MAX * OUT], scale[OUT], bias[OUT];
    const size_t bytes = 8 + OUT * (size_t)in * dtype_size(dtype);
    ccmem_store *s;
    ccmem_key *key;

    fill_secret(raw, sizeof raw, SEED_KEY);
    fill_secret(w, bytes, SEED_PLAIN);
    fill_secret(x, sizeof x, SEED_MORE);
    fill_secret(scale, sizeof scale, SEED_KEY);
    fill_secret(bias, sizeof bias, SEED_KEY);
    REQUIRE(!ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, &key));
    REQUIRE(!ccmem_store_new(key, CCMEM_AES_128_XTS, bytes, 4096, 0, 0, CCMEM_FRESH_ONCE, &s));
    REQUIRE(!ccmem_store_fill(s, 0, w, bytes));
    publish_store(s, CCMEM_AES_128_XTS);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const uint64_t rows = counts[i];
        memset(y, 0, sizeof y);
        REQUIRE(!ccmem_store_linear(s, 8, dtype, OUT, in, scale, x, rows, in, bias, y, OUT));
        REQUIRE(is_secret(y, rows * OUT * sizeof *y));
        if (dtype != CCMEM_F32 && dtype != CCMEM_BF16)
            continue;
        const ccmem_bias added = {.data = bias, .dtype = CCMEM_BF16};
        memset(y, 0, sizeof y);
        REQUIRE(!ccmem_store_linear_typed(s, 8, dtype, OUT, in, x, CCMEM_BF16, rows, added, y,
                                          CCMEM_BF16));
        REQUIRE(is_secret(y, rows * OUT * sizeof(uint16_t)));
    }
    ccmem_store_free(s);
    ccmem_key_free(key);
}

static void float_products(void) {
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        float_products_of((ccmem_dtype)dtype, 1000);
        float_products_of((ccmem_dtype)dtype, 1023);
    }
    float_products_of(CCMEM_F32, 11000);
}

/* ---- products of int8 ------------------------------------------------------------------------ */

/* Few rows of x and panels, with rows of W that pages cut, and rows of x of all kinds: which ones
 * are not finite shows in y alone. */
static void int8_products(void) {
    enum { OUT = 30, IN = 150, MOST = 20 };
    static const float kinds[] = {1.0f, 0.0f, 0x1p-120f, INFINITY, NAN};
    uint8_t w[OUT * IN];
    float x[MOST * IN], y[MOST * OUT], scale[OUT], bias[OUT];
    uint16_t half[MOST * IN];
    ccmem_key *key;
    ccmem_store *store;
    fill(w, sizeof w, SEED_PLAIN);
    make_secret(w, sizeof w);
    for (size_t i = 0; i < OUT; i++)
        scale[i] = bias[i] = (float)i;
    for (size_t i = 0; i < MOST * IN; i++) {
        x[i] = kinds[i / IN % 5] * (float)(i % 37);
        half[i] = (uint16_t)(0x3f80 + i % 90);
    }
    REQUIRE(!ccmem_key_generate(CCMEM_SECRET_MLOCK, &key));
    REQUIRE(!ccmem_store_new(key, CCMEM_AEGIS_128X2, sizeof w, CCMEM_PAGE_SIZE_MIN, 0, 0,
                             CCMEM_FRESH_NOT, &store));
    ccmem_key_free(key);
    REQUIRE(!ccmem_store_write(store, 0, w, sizeof w));
    make_secret(x, sizeof x);
    make_secret(half, sizeof half);
    make_secret(scale, sizeof scale);
    make_secret(bias, sizeof bias);
    const ccmem_bias added = {.data = bias, .dtype = CCMEM_F32};
    for (size_t rows = 5; rows <= MOST; rows += MOST - 5) {
        REQUIRE(!ccmem_store_linear_int8(store, 0, OUT, IN, scale, x, CCMEM_F32, rows, added, y,
                                         CCMEM_F32));
        REQUIRE(is_secret(y, rows * OUT * sizeof *y));
        REQUIRE(!ccmem_store_linear_int8(store, 0, OUT, IN, scale, half, CCMEM_BF16, rows, added, y,
                                         CCMEM_BF16));
        REQUIRE(is_secret(y, rows * OUT * sizeof(uint16_t)));
    }
    ccmem_store_free(store);
}

/* ---- kernels of attention -------------------------------------------------------------------- */

enum { HEAD = 100, WIDE = 128, FEW_TOKENS = 9, FEW_ROWS = 7, FEW_SCORES = 16 };

/* Any bits: subnormal, infinite and missing numbers as well. */
static void attention_of(ccmem_dtype dtype) {
    static _Alignas(64) float q[WIDE], packed[FEW_ROWS * WIDE], sums[FEW_ROWS * WIDE];
    static _Alignas(64) uint8_t block[FEW_TOKENS * WIDE * sizeof(float)];
    float scales[FEW_TOKENS], scores[FEW_ROWS * FEW_SCORES];
    const attention_ops *ops = tier_kernels_of(tier).attention;
    const size_t stride = WIDE * dtype_size(dtype);

    fill_secret(q, sizeof q, SEED_KEY);
    fill_secret(block, sizeof block, SEED_PLAIN);
    fill_secret(scales, sizeof scales, SEED_MORE);
    for (size_t r = 0; r < FEW_ROWS; r++)
        ops->pack[dtype](packed + r * WIDE, q, HEAD, 0.5f);
    ops->scores[dtype](scores, FEW_SCORES, block, stride, scales, FEW_TOKENS, WIDE, packed, WIDE,
                       FEW_ROWS);
    REQUIRE(is_secret(scores, FEW_TOKENS * sizeof *scores));
    for (size_t r = 0; r < FEW_ROWS; r++) {
        float *row = scores + r * FEW_SCORES;
        ops->soften(row, FEW_TOKENS, 30);
        float most = ops->highest(row, FEW_TOKENS), sum = ops->exponentials(row, FEW_TOKENS, most);
        REQUIRE(is_secret(&sum, sizeof sum));
        ops->scale(row, FEW_TOKENS, sum);
    }
    memset(sums, 0, sizeof sums);
    ops->sums[dtype](sums, WIDE, scores, FEW_SCORES, block, stride, scales, FEW_TOKENS, WIDE,
                     FEW_ROWS);
    REQUIRE(is_secret(sums, sizeof sums));
    if (dtype == CCMEM_I8)
        ops->quantise((int8_t *)block, scales, q, HEAD);
    else
        ops->store[dtype](block, q, HEAD);
    REQUIRE(is_secret(block, HEAD));
}

/* Of whole blocks, and their columns. */
static void attention_of_blocks(ccmem_dtype dtype) {
    enum { TOKENS = 32 };
    static _Alignas(64) float q[WIDE], packed[FEW_ROWS * WIDE], sums[FEW_ROWS * WIDE];
    static _Alignas(64) uint8_t block[TOKENS * WIDE * sizeof(float)];
    static float scales[TOKENS], scores[FEW_ROWS * TOKENS], columns[WIDE * TOKENS];
    const attention_ops *ops = tier_kernels_of(tier).attention;

    fill_secret(q, sizeof q, SEED_KEY);
    fill_secret(block, sizeof block, SEED_PLAIN);
    fill_secret(scales, sizeof scales, SEED_MORE);
    for (size_t r = 0; r < FEW_ROWS; r++)
        ops->pack[dtype](packed + r * WIDE, q, WIDE, 0.5f);
    ops->block_scores[dtype](scores, TOKENS, block, block, scales, TOKENS, WIDE, packed, WIDE,
                             FEW_ROWS);
    REQUIRE(is_secret(scores, sizeof scores));
    memset(sums, 0, sizeof sums);
    ops->block_sums[dtype](sums, WIDE, scores, TOKENS, block, block, scales, TOKENS, WIDE,
                           FEW_ROWS);
    REQUIRE(is_secret(sums, sizeof sums));
    ops->columns[dtype](columns, TOKENS, block, scales, TOKENS, TOKENS, WIDE);
    REQUIRE(is_secret(columns, sizeof columns));
}

static void attention_kernels(void) {
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        attention_of((ccmem_dtype)dtype);
        attention_of_blocks((ccmem_dtype)dtype);
    }
}

/* ---- quantised weights ----------------------------------------------------------------------- */

enum { WEIGHTS = 768 };

/* Whatever the floats are, and the bytes of blocks: of these, scales that are no numbers, too. */
static void blocks(void) {
    static float x[WEIGHTS], back[WEIGHTS], scale[3];
    static uint8_t packed[4 * WEIGHTS];

    for (int number = 0; number < CCMEM_BLOCK_FORMATS; number++) {
        const ccmem_block_format format = (ccmem_block_format)number;
        const size_t n = ccmem_block_elements(format), count = WEIGHTS / n;
        const size_t bytes = count * ccmem_block_bytes(format);

        for (size_t i = 0; i < WEIGHTS; i++)
            x[i] = i < 256 ? (float)(i * 37 % 101) - 50 : i < 512 ? 0 : (float)i * 1e-30f;
        make_secret(x, sizeof x);
        if (format == CCMEM_INT8_ROW) {
            REQUIRE(!ccmem_rows_quantize(x, 3, WEIGHTS / 3, packed, scale));
            REQUIRE(is_secret(scale, sizeof scale));
        } else
            REQUIRE(!ccmem_blocks_quantize(format, x, count, packed));
        REQUIRE(is_secret(packed, bytes));
        REQUIRE(!ccmem_blocks_dequantize(format, packed, count, back));
        REQUIRE(is_secret(back, sizeof back));
        fill_secret(packed, bytes, SEED_PLAIN);
        REQUIRE(!ccmem_blocks_dequantize(format, packed, count, back));
        REQUIRE(is_secret(back, sizeof back));
        if (format == CCMEM_INT8_ROW)
            continue;
        make_public(x, sizeof x);
        x[WEIGHTS / 2] = __builtin_inff();
        make_secret(x, sizeof x);
        REQUIRE(ccmem_blocks_quantize(format, x, count, packed) == CCMEM_ERR_ARGUMENT);
    }
}

/* ---- kernels of quantised blocks ------------------------------------------------------------- */

/* Any bits in both: scales and x that are subnormal, infinite and no numbers as well. */
static void block_kernels_of(const blocks_ops *ops, ccmem_block_format format) {
    enum { BLOCKS = 9, ELEMENTS = BLOCKS * BLOCK_SUPER, ROW = 52 * 64, WIDTH = 32, HEIGHT = 12 };
    static float x[ELEMENTS + 8];
    static _Alignas(64) uint8_t packed[8 * ROW], apart[HEIGHT * 4096];
    static _Alignas(64) int32_t columns[WIDTH * ROW / 4];
    static _Alignas(64) float sums[2 * BLOCKS_ROWS * BLOCKS_LANES], of_panel[HEIGHT * WIDTH];
    static _Alignas(64) float lanes[(BLOCKS_LANES + 1) * HEIGHT * WIDTH];
    static uint8_t w[BLOCKS * BLOCK_BYTES_MAX];
    const block_format *is = &block_formats[format];
    const blocks_layout at = blocks_layout_of(format, BLOCKS);
    const blocks_x rows = {packed, at, format};

    REQUIRE(at.bytes <= ROW);
    fill_secret(x, sizeof x, SEED_KEY);
    fill_secret(w, sizeof w, SEED_PLAIN);
    for (size_t r = 0; r < 8; r++) {
        uint8_t *row = packed + r * at.bytes;
        if (blocks_super(format))
            ops->pack_supers(row, &at, x + r);
        else
            ops->pack_runs(row, &at, x + r, blocks_zero(format));
        REQUIRE(is_secret(row + at.scale, at.units * sizeof(float)));
    }
    for (int several = 0; several < 2; several++) {
        const size_t n = several ? BLOCKS_ROWS : 1;
        const blocks_w rows_of_w = {.first = w + is->bytes,
                                    .number = 1,
                                    .n = BLOCKS - 2,
                                    .rows = 2,
                                    .bytes = is->bytes,
                                    .apart = n * BLOCKS_LANES};
        float total[2 * BLOCKS_ROWS];
        memset(sums, 0, sizeof sums);
        ops->dot[format][several](sums, &rows_of_w, &rows);
        ops->total(total, sums, 2 * n);
        REQUIRE(is_secret(total, 2 * n * sizeof *total));
    }
    if (!ops->panels)
        return;
    const blocks_panel panel = {.w = apart,
                                .ldw = 4096,
                                .x = columns,
                                .at = {at.units, at.scale / 4, at.sums / 4, at.more / 4, 0},
                                .lanes = lanes,
                                .sums = of_panel};
    for (size_t i = 0; i < ops->panels->height; i++)
        ops->panels->unpack[format](apart + i * 4096, w, BLOCKS, is->elements / BLOCKS_RUN);
    for (size_t r = 0; r < ops->panels->width; r += 8)
        ops->panels->pack(columns + r, (const int8_t *)packed, at.bytes, at.bytes / 4);
    for (int both = 0; both < 2; both++) {
        memset(of_panel, 0, sizeof of_panel);
        ops->panels->multiply[format][both](&panel);
        REQUIRE(is_secret(of_panel, ops->panels->lanes * sizeof *of_panel));
    }
}

static void block_kernels(void) {
    for (int format = 0; format < CCMEM_INT8_ROW; format++)
        block_kernels_of(tier_kernels_of(tier).blocks, (ccmem_block_format)format);
}

/* ---- main ------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    void (*run)(void);
} subjects[] = {
    {"aes", aes},
    {"cmac-and-kdf", kdf},
    {"key-wrap", key_wrap},
    {"keys-of-files", file_keys},
    {"gf128", gf128_arithmetic},
    {"xts-data-units", xts_units},
    {"xts-kernels", xts_kernels},
    {"aegis-messages", aegis_messages},
    {"aegis-kernels", aegis_pages},
    {"aegis256-messages", aegis256_messages},
    {"aegis256-kernels", aegis256_pages},
    {"gcm-messages", gcm_messages},
    {"gcm-kernels", gcm_pages},
    {"float-products", float_products},
    {"int8-products", int8_products},
    {"root-keys", keys},
    {"attention-kernels", attention_kernels},
    {"quantised-blocks", blocks},
    {"store-aes-128-xts", store_aes_128_xts},
    {"store-aes-256-xts", store_aes_256_xts},
    {"store-aegis-128x2", store_aegis_128x2},
    {"store-aes-256-gcm", store_aes_256_gcm},
    {"store-aegis-256x2", store_aegis_256x2},
    {"sm4-blocks-and-sm3", sm4_blocks},
    {"sm4-data-units", sm4_units},
    {"sm4-gcm", sm4_gcm},
    {"store-sm4-xts", store_sm4_xts},
    {"store-sm4-gcm", store_sm4_gcm},
    {"caches", caches},
    {"block-kernels", block_kernels},
};

enum { SUBJECTS = sizeof subjects / sizeof *subjects };

int main(int argc, char **argv) {
    if (argc != 3) {
        for (int i = 0; i < SUBJECTS; i++)
            puts(subjects[i].name);
        return 0;
    }
    REQUIRE(RUNNING_ON_VALGRIND);
    if (ccmem_init(argv[2]) == CCMEM_ERR_TIER)
        return NOT_ON_THIS_PROCESSOR;
    tier = ccmem_tier_active();
    REQUIRE(!strcmp(ccmem_tier_name(tier), argv[2]) && ccmem_tier_usable(tier));
    REQUIRE(!ccmem_set_threads(1));
    for (int i = 0; i < SUBJECTS; i++)
        if (!strcmp(subjects[i].name, argv[1])) {
            subjects[i].run();
            return 0;
        }
    fprintf(stderr, "no subject named %s\n", argv[1]);
    return 1;
}
