/* SPDX-License-Identifier: Apache-2.0
 *
 * Code that leaks, for memcheck to catch: were one of these silent, the silence of subjects.c would
 * prove nothing. One control a run: controls NAME; without arguments lines of name, the error
 * expected, and the function that it must be reported in.
 */
#include "ct.h"

#include "crypto/mac/kdf.h"
#include "tiers/tiers.h"

#define LEAKY __attribute__((noinline))

/* Keeps the compiler from turning a branch into arithmetic. */
#define STAY_A_BRANCH __asm__ volatile("" : : : "memory")

static volatile uint8_t sink;

/* ---- an S-box by table: the address depends on the key --------------------------------------- */

static uint8_t table[256];

LEAKY static uint8_t leak_by_table(uint8_t text, uint8_t key) { return table[text ^ key]; }

static void run_table(void) {
    uint8_t key[16];
    fill(table, sizeof table, 1);
    fill_secret(key, sizeof key, 2);
    sink = leak_by_table(0x5a, key[3]);
}

/* ---- a doubling in GF(2^128) that branches on the highest bit -------------------------------- */

LEAKY static void leak_by_branch(uint64_t t[2]) {
    uint64_t top = t[1] >> 63;
    t[1] = t[1] << 1 | t[0] >> 63;
    t[0] <<= 1;
    if (top) {
        STAY_A_BRANCH;
        t[0] ^= 0x87;
    }
}

static void run_branch(void) {
    uint64_t t[2];
    fill_secret(t, sizeof t, 3);
    leak_by_branch(t);
}

/* ---- a comparison of tags that stops at the first difference --------------------------------- */

LEAKY static int leak_by_comparison(const uint8_t *a, const uint8_t *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        STAY_A_BRANCH;
        if (a[i] != b[i])
            return 0;
    }
    return 1;
}

static void run_comparison(void) {
    uint8_t right[16], given[16];
    fill_secret(right, sizeof right, 4);
    fill(given, sizeof given, 4);
    sink = (uint8_t)leak_by_comparison(right, given, sizeof right);
}

/* ---- one bit of a secret is enough ----------------------------------------------------------- */

static void run_bit(void) {
    uint64_t t[2] = {1, 2};
    uint8_t one = 0x80;
    (void)VALGRIND_SET_VBITS((uint8_t *)t + 15, &one, 1);
    leak_by_branch(t);
}

/* ---- inside a store: subkeys derived from the caller's bytes by the library itself ----------- */

void __real_kdf_counter_cmac(const aes_ops *ops, const aes_key *key, const uint8_t *label,
                             size_t label_len, const uint8_t *context, size_t context_len,
                             uint8_t *out, size_t out_len);
void __wrap_kdf_counter_cmac(const aes_ops *ops, const aes_key *key, const uint8_t *label,
                             size_t label_len, const uint8_t *context, size_t context_len,
                             uint8_t *out, size_t out_len);

LEAKY static void leak_by_subkey(const uint8_t *subkey) {
    if (subkey[5] & 1) {
        STAY_A_BRANCH;
        sink = 1;
    }
}

/* The linker puts this in the place of the library's. */
void __wrap_kdf_counter_cmac(const aes_ops *ops, const aes_key *key, const uint8_t *label,
                             size_t label_len, const uint8_t *context, size_t context_len,
                             uint8_t *out, size_t out_len) {
    __real_kdf_counter_cmac(ops, key, label, label_len, context, context_len, out, out_len);
    leak_by_subkey(out);
}

static void run_store(void) {
    uint8_t raw[CCMEM_ROOT_KEY_SIZE];
    ccmem_store *store;
    ccmem_key *key;

    fill_secret(raw, sizeof raw, 5);
    REQUIRE(!ccmem_init("portable"));
    REQUIRE(!ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, &key));
    REQUIRE(!ccmem_store_new(key, CCMEM_AES_128_XTS, 4096, 4096, 0, 0, CCMEM_FRESH_NOT, &store));
    ccmem_store_free(store);
    ccmem_key_free(key);
}

/* ---- behind a kernel of each tier: bytes opened from public ciphertext under a secret key ---- */

LEAKY static void leak_by_plaintext(const uint8_t *text) { sink = table[text[1000]]; }

static void run_kernel(const char *name, ccmem_tier tier) {
    static uint8_t text[4096];
    uint8_t raw[32], t0[1][16] = {{0}};
    xts_key key;

    if (ccmem_init(name) == CCMEM_ERR_TIER)
        exit(NOT_ON_THIS_PROCESSOR);
    REQUIRE(ccmem_tier_active() == tier);
    fill_secret(raw, sizeof raw, 6);
    REQUIRE(!xts_expand(&key, raw, sizeof raw));
    tier_kernels_of(tier).xts->tweaks(&key, t0, 1);
    tier_kernels_of(tier).xts->open_pages(&key, text, text, 1, sizeof text,
                                          (const uint8_t (*)[16])t0, 0);
    leak_by_plaintext(text);
}

static void run_portable(void) { run_kernel("portable", CCMEM_TIER_PORTABLE); }
static void run_aesni(void) { run_kernel("aesni", CCMEM_TIER_AESNI); }

/* ---- main ------------------------------------------------------------------------------------ */

/* memcheck's names of the two kinds of error. */
#define BRANCH "UninitCondition"
#define ADDRESS "UninitValue"

static const struct {
    const char *name, *kind, *function;
    void (*run)(void);
} controls[] = {
    {"table-lookup", ADDRESS, "leak_by_table", run_table},
    {"branching-doubling", BRANCH, "leak_by_branch", run_branch},
    {"early-exit-comparison", BRANCH, "leak_by_comparison", run_comparison},
    {"single-secret-bit", BRANCH, "leak_by_branch", run_bit},
    {"subkey-in-a-store", BRANCH, "leak_by_subkey", run_store},
    {"plaintext-portable", ADDRESS, "leak_by_plaintext", run_portable},
    {"plaintext-aesni", ADDRESS, "leak_by_plaintext", run_aesni},
};

enum { CONTROLS = sizeof controls / sizeof *controls };

int main(int argc, char **argv) {
    if (argc != 2) {
        for (int i = 0; i < CONTROLS; i++)
            printf("%s %s %s\n", controls[i].name, controls[i].kind, controls[i].function);
        return 0;
    }
    REQUIRE(RUNNING_ON_VALGRIND);
    for (int i = 0; i < CONTROLS; i++)
        if (!strcmp(controls[i].name, argv[1])) {
            controls[i].run();
            return 0;
        }
    fprintf(stderr, "no control named %s\n", argv[1]);
    return 1;
}
