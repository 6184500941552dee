/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs the library, without Python, on known answers: `vectors FILE`, a case a line, its kind
 * first, then fields in hexadecimal ("-": empty) or decimal. Prints how many cases of each kind
 * were right and ends with status 0, or names the lines that were not and ends with 1; 2: the file
 * or the library's start is broken. test_portable.py builds it for other architectures and writes
 * the file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "ccmem.h"

enum { FIELDS = 10 };

static const ccmem_tier TIER = CCMEM_TIER_PORTABLE;

typedef struct field {
    const char *text;
    uint8_t *data; /* of its hexadecimal digits */
    size_t n;
} field;

/* The system's random generator is replaced by this (the linker's --wrap): store ids are known. */
ssize_t __wrap_getrandom(void *p, size_t n, unsigned flags);
ssize_t __wrap_getrandom(void *p, size_t n, unsigned flags) {
    (void)flags;
    memset(p, 0x37, n);
    return (ssize_t)n;
}

static void *memory(size_t n) {
    void *p = calloc(n + 64, 1);
    if (!p) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    return p;
}

static int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

static void decode(field *f) {
    size_t length = *f->text == '-' ? 0 : strlen(f->text);
    f->n = length / 2;
    f->data = memory(f->n);
    for (size_t i = 0; i < f->n; i++)
        f->data[i] = (uint8_t)(digit(f->text[2 * i]) << 4 | digit(f->text[2 * i + 1]));
}

static int same(const void *a, const field *f) { return !memcmp(a, f->data, f->n); }

static int zero(const uint8_t *p, size_t n) {
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++)
        all |= p[i];
    return !all;
}

static ccmem_key *root_key(void) {
    uint8_t raw[CCMEM_ROOT_KEY_SIZE];
    ccmem_key *key = NULL;
    for (size_t i = 0; i < sizeof raw; i++)
        raw[i] = (uint8_t)i;
    return ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, &key) == CCMEM_OK ? key : NULL;
}

/* ---- primitives ---------------------------------------------------------------------------------
 */

/* xts both|encrypt|decrypt KEY TWEAK PLAIN SEALED */
static int run_xts(field *f) {
    const field *key = &f[1], *tweak = &f[2], *plain = &f[3], *sealed = &f[4];
    uint8_t *got = memory(plain->n);
    int good = plain->n == sealed->n && tweak->n == 16;
    if (*f->text != 'd')
        good = good &&
               ccmem_xts(TIER, 1, key->data, key->n, tweak->data, plain->data, got, plain->n) ==
                   CCMEM_OK &&
               same(got, sealed);
    if (*f->text != 'e')
        good = good &&
               ccmem_xts(TIER, 0, key->data, key->n, tweak->data, sealed->data, got, plain->n) ==
                   CCMEM_OK &&
               same(got, plain);
    free(got);
    return good;
}

/* aegis LANES valid|invalid KEY NONCE AD PLAIN SEALED TAG */
static int run_aegis(field *f) {
    const unsigned lanes = (unsigned)atoi(f->text);
    const field *key = &f[2], *nonce = &f[3], *ad = &f[4], *plain = &f[5], *sealed = &f[6];
    const field *tag = &f[7];
    uint8_t *got = memory(sealed->n), made[32];
    ccmem_status status;
    int good = 1;
    if (*f[1].text == 'v')
        good = ccmem_aegis_encrypt(TIER, lanes, key->data, nonce->data, ad->data, ad->n,
                                   plain->data, got, plain->n, made, tag->n) == CCMEM_OK &&
               same(got, sealed) && same(made, tag);
    status = ccmem_aegis_decrypt(TIER, lanes, key->data, nonce->data, ad->data, ad->n, sealed->data,
                                 got, sealed->n, tag->data, tag->n);
    if (*f[1].text == 'v')
        good = good && status == CCMEM_OK && same(got, plain);
    else
        good = status == CCMEM_ERR_INTEGRITY && zero(got, sealed->n);
    free(got);
    return good;
}

/* cmac KEY MESSAGE TAG */
static int run_cmac(field *f) {
    uint8_t tag[16];
    return ccmem_cmac(TIER, f[0].data, f[0].n, f[1].data, f[1].n, tag) == CCMEM_OK &&
           same(tag, &f[2]);
}

/* kdf KEY LABEL CONTEXT OUT */
static int run_kdf(field *f) {
    uint8_t *got = memory(f[3].n);
    int good = ccmem_kdf(TIER, f[0].data, f[0].n, f[1].data, f[1].n, f[2].data, f[2].n, got,
                         f[3].n) == CCMEM_OK &&
               same(got, &f[3]);
    free(got);
    return good;
}

/* kw KEK KEY WRAPPED */
static int run_kw(field *f) {
    uint8_t got[128];
    return ccmem_aes_kw(TIER, 1, f[0].data, f[0].n, f[1].data, f[1].n, got) == CCMEM_OK &&
           same(got, &f[2]) &&
           ccmem_aes_kw(TIER, 0, f[0].data, f[0].n, f[2].data, f[2].n, got) == CCMEM_OK &&
           same(got, &f[1]);
}

/* ---- pages --------------------------------------------------------------------------------------
 */

static ccmem_cipher cipher_of(const char *name) {
    int cipher = 0;
    while (strcmp(name, ccmem_suite_of((ccmem_cipher)cipher)->name) != 0)
        cipher++;
    return (ccmem_cipher)cipher;
}

/* pages CIPHER PAGE-SIZE VERSION DATA STORED TAGS: all of a store of three pages is written VERSION
 * times, the last time in two halves, so that the page in the middle goes one version further. */
static int run_pages(field *f) {
    const ccmem_cipher cipher = cipher_of(f[0].text);
    const field *data = &f[3];
    uint8_t *got = memory(data->n), *tags = NULL;
    uint64_t *versions = NULL, last = (uint64_t)atoi(f[2].text);
    ccmem_store *store = NULL;
    ccmem_key *key = root_key();
    int good = key && ccmem_store_new(key, cipher, data->n, (uint32_t)atoi(f[1].text), 0, 16,
                                      CCMEM_FRESH_NOT, &store) == CCMEM_OK;
    for (uint64_t version = 1; good && version < last; version++)
        good = ccmem_store_write(store, 0, data->data, data->n) == CCMEM_OK;
    good = good && ccmem_store_write(store, 0, data->data, data->n / 2) == CCMEM_OK &&
           ccmem_store_write(store, data->n / 2, data->data + data->n / 2, data->n / 2) == CCMEM_OK;
    if (good) {
        ccmem_mapping *mapping = ccmem_store_mapping(store);
        good = ccmem_store_records(store, &versions, &tags) == CCMEM_OK &&
               same(ccmem_mapping_data(mapping), &f[4]) &&
               (!ccmem_cipher_authenticated(cipher) || same(tags, &f[5])) && versions[0] == last &&
               versions[1] == last + 1 && versions[2] == last;
        good = good && ccmem_store_read(store, 0, got, data->n) == CCMEM_OK && same(got, data);
        ccmem_mapping_release(mapping);
    }
    ccmem_store_free(store);
    ccmem_key_free(key);
    free(got);
    return good;
}

/* file PAGE-SIZE ID VERSIONS TAGS STORED DATA: as a part of a sealed file has it. Read; sealed
 * again, where it is of version 1; refused, once a tag has another bit. */
static int run_file(field *f) {
    const uint32_t size = (uint32_t)atoi(f[0].text);
    const field *versions = &f[2], *tags = &f[3], *stored = &f[4], *data = &f[5];
    uint8_t *got = memory(data->n), *made = memory(tags->n);
    ccmem_store *store = NULL;
    ccmem_sealer *sealer = NULL;
    ccmem_key *key = root_key();
    FILE *file = tmpfile();
    int good =
        key && file && fwrite(stored->data, 1, stored->n, file) == stored->n && !fflush(file);
    for (int changed = 0; good && changed < 2; changed++) {
        ccmem_status wanted = changed ? CCMEM_ERR_INTEGRITY : CCMEM_OK;
        tags->data[tags->n - 1] ^= (uint8_t)changed;
        good = ccmem_store_map(key, CCMEM_AEGIS_128X2, f[1].data, data->n, size, fileno(file), 0, 0,
                               (const uint64_t *)(const void *)versions->data, tags->data,
                               &store) == CCMEM_OK &&
               ccmem_store_read(store, 0, got, data->n) == wanted &&
               (changed ? zero(got, data->n) : same(got, data));
        tags->data[tags->n - 1] ^= (uint8_t)changed;
        ccmem_store_free(store);
        store = NULL;
    }
    if (good && versions->data[0] == 1 && zero(versions->data + 1, 7))
        good = ccmem_sealer_new(key, CCMEM_AEGIS_128X2, f[1].data, size, &sealer) == CCMEM_OK &&
               ccmem_sealer_seal(sealer, 0, data->n / size, data->data, got, made) == CCMEM_OK &&
               same(got, stored) && same(made, tags);
    ccmem_sealer_free(sealer);
    ccmem_key_free(key);
    if (file)
        fclose(file);
    free(made);
    free(got);
    return good;
}

/* ---- products -----------------------------------------------------------------------------------
 */

static ccmem_store *store_with(const ccmem_key *key, const void *data, size_t n) {
    ccmem_store *store = NULL;
    if (ccmem_store_new(key, CCMEM_AEGIS_128X2, n, 4096, 0, 0, CCMEM_FRESH_NOT, &store) !=
            CCMEM_OK ||
        ccmem_store_write(store, 0, data, n) != CCMEM_OK) {
        fprintf(stderr, "no store\n");
        exit(2);
    }
    return store;
}

static uint32_t number_of(const field *f, size_t i, size_t size) {
    uint32_t v = 0;
    for (size_t j = 0; j < size; j++)
        v = v << 8 | f->data[i * size + j];
    return v;
}

/* numbers DTYPE SIZE ELEMENTS FLOATS: each element times 1 is this float32, of which NaN is any.
 * The elements are numbers of SIZE bytes, most significant first, and are stored as the processor
 * does. */
static int run_numbers(field *f) {
    const size_t size = (size_t)atoi(f[1].text), n = f[2].n / size;
    uint8_t *w = memory(n * size);
    float *y = memory(n * sizeof *y), one[2] = {1.0f, 1.0f};
    ccmem_key *key = root_key();
    int good = key != NULL;
    for (size_t i = 0; i < n; i++) {
        uint32_t v = number_of(&f[2], i, size);
        uint16_t half = (uint16_t)v;
        if (size == 1)
            w[i] = (uint8_t)v;
        else
            memcpy(w + i * size, size == 2 ? (void *)&half : (void *)&v, size);
    }
    ccmem_store *store = good ? store_with(key, w, n * size) : NULL;
    for (unsigned rows = 1; good && rows <= 2; rows++) {
        float *out = rows == 1 ? y : memory(2 * n * sizeof *y);
        good = ccmem_store_linear(store, 0, (ccmem_dtype)atoi(f[0].text), n, 1, NULL, one, rows, 1,
                                  NULL, out, n) == CCMEM_OK;
        for (size_t i = 0; i < n * rows; i++) {
            uint32_t bits, wanted = number_of(&f[3], i % n, 4);
            memcpy(&bits, out + i, sizeof bits);
            if ((wanted & 0x7fffffff) > 0x7f800000)
                good &= (bits & 0x7fffffff) > 0x7f800000;
            else if (wanted << 1) /* the product is added to 0, which takes the sign of a zero */
                good &= bits == wanted;
            else
                good &= !(bits << 1);
        }
        if (rows == 2)
            free(out);
    }
    ccmem_store_free(store);
    ccmem_key_free(key);
    free(y);
    free(w);
    return good;
}

/* linear ROWS INPUTS OUTPUTS: whole numbers, whose sums are exact in any order; scale and bias. */
static int run_linear(field *f) {
    const size_t rows = (size_t)atoi(f[0].text), in = (size_t)atoi(f[1].text);
    const size_t out = (size_t)atoi(f[2].text);
    float *x = memory(rows * in * sizeof *x), *w = memory(out * in * sizeof *w);
    float *y = memory(rows * out * sizeof *y), *scale = memory(out * sizeof *scale);
    float *bias = memory(out * sizeof *bias);
    ccmem_key *key = root_key();
    for (size_t i = 0; i < rows * in; i++)
        x[i] = (float)(i % 7);
    for (size_t i = 0; i < out * in; i++)
        w[i] = (float)(i * 5 % 16) - 8.0f;
    for (size_t i = 0; i < out; i++) {
        scale[i] = (float)(1 << i % 3);
        bias[i] = (float)i;
    }
    ccmem_store *store = key ? store_with(key, w, out * in * sizeof *w) : NULL;
    int good = store && ccmem_store_linear(store, 0, CCMEM_F32, out, in, scale, x, rows, in, bias,
                                           y, out) == CCMEM_OK;
    for (size_t r = 0; good && r < rows; r++)
        for (size_t o = 0; o < out; o++) {
            long sum = 0;
            for (size_t i = 0; i < in; i++)
                sum += ((long)((o * in + i) * 5 % 16) - 8) * (long)((r * in + i) % 7);
            good &= y[r * out + o] == (float)(sum * (1 << o % 3) + (long)o);
        }
    ccmem_store_free(store);
    ccmem_key_free(key);
    free(bias);
    free(scale);
    free(y);
    free(w);
    free(x);
    return good;
}

/* ---- searching memory ---------------------------------------------------------------------------
 */

/* scan MEMORY SAMPLE-OFFSET ELSEWHERE: the 16 bytes there are found at that offset of MEMORY alone,
 * and not at all in ELSEWHERE. */
static int run_scan(field *f) {
    const uint64_t offset = (uint64_t)atoi(f[1].text);
    ccmem_samples *samples = NULL;
    ccmem_scan_hit hits[8];
    uint32_t found = 0, none = 1;
    uint64_t next;
    uint8_t taken = 0;
    int good = ccmem_samples_new(4, &samples) == CCMEM_OK &&
               ccmem_samples_add(samples, f[0].data, f[0].n, &offset, 1, &taken) == CCMEM_OK &&
               taken;
    good = good && ccmem_scan(samples, f[0].data, f[0].n, 0, hits, 8, &found, &next) == CCMEM_OK &&
           found == 1 && hits[0].offset == offset;
    good = good && ccmem_scan(samples, f[2].data, f[2].n, 0, hits, 8, &none, &next) == CCMEM_OK &&
           !none;
    ccmem_samples_free(samples);
    return good;
}

/* ---- the file -----------------------------------------------------------------------------------
 */

static int run_selftest(field *f) {
    (void)f;
    return ccmem_selftest(TIER) == CCMEM_OK;
}

typedef struct kind {
    const char *name;
    int fields;
    int (*run)(field *);
    unsigned good, bad;
} kind;

static kind kinds[] = {{"selftest", 0, run_selftest, 0, 0}, {"xts", 5, run_xts, 0, 0},
                       {"aegis", 8, run_aegis, 0, 0},       {"cmac", 3, run_cmac, 0, 0},
                       {"kdf", 4, run_kdf, 0, 0},           {"kw", 3, run_kw, 0, 0},
                       {"pages", 6, run_pages, 0, 0},       {"file", 6, run_file, 0, 0},
                       {"numbers", 4, run_numbers, 0, 0},   {"linear", 3, run_linear, 0, 0},
                       {"scan", 3, run_scan, 0, 0}};

static int run_line(char *line) {
    const char *name = strtok(line, " \n");
    for (size_t k = 0; name && k < sizeof kinds / sizeof *kinds; k++) {
        field fields[FIELDS];
        int n = 0, good;
        if (strcmp(kinds[k].name, name))
            continue;
        for (const char *text; n < FIELDS && (text = strtok(NULL, " \n")); n++) {
            fields[n].text = text;
            decode(&fields[n]);
        }
        if (n != kinds[k].fields)
            return -1;
        good = kinds[k].run(fields);
        for (int i = 0; i < n; i++)
            free(fields[i].data);
        if (good)
            kinds[k].good++;
        else
            kinds[k].bad++;
        return good;
    }
    return -1;
}

int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    char *line = NULL;
    size_t room = 0;
    int bad = 0;
    ccmem_status status = ccmem_init("portable");
    if (!file || status != CCMEM_OK) {
        fprintf(stderr, "%s\n", file ? ccmem_status_text(status) : "vectors FILE");
        return 2;
    }
    for (int number = 1; getline(&line, &room, file) > 0; number++) {
        int good = run_line(line);
        if (good < 0) {
            fprintf(stderr, "line %d is not a case\n", number);
            return 2;
        }
        if (!good)
            fprintf(stderr, "line %d is wrong\n", number);
        bad |= !good;
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        printf("%s %u %u\n", kinds[k].name, kinds[k].good, kinds[k].bad);
    free(line);
    fclose(file);
    return bad;
}
