/* SPDX-License-Identifier: Apache-2.0
 *
 * AES (FIPS 197) on bit planes. The same instructions run for every key and every block, and no
 * address depends on either, on any processor whose and, xor and shift take constant time.
 */
#include "crypto/aes/bitslice.h"

#include "memory/secret.h"

#include <string.h>

typedef bs_word word;
typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(16)));
typedef uint32_t columns __attribute__((vector_size(16)));

/* GCC has the first spelling only from version 12 on, Clang never had the second. */
#if defined(__clang__) || __GNUC__ >= 12
#define PERMUTE(type, x, ...) ((word)__builtin_shufflevector((type)(x), (type)(x), __VA_ARGS__))
#else
#define PERMUTE(type, x, ...) ((word)__builtin_shuffle((type)(x), (type){__VA_ARGS__}))
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define ONES(byte) (UINT64_C(0x0101010101010101) * (byte))

INLINE word splat(uint64_t x) { return (word){x, x}; }

/* Byte masks of rows: byte p of a block is row p % 4 of column p / 4. */
#define ROWS(a, b, c, d) ((word)(bytes16){a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d})

/* ---- between blocks and planes --------------------------------------------------------------- */

INLINE void swap_bits(word *a, word *b, int n, word mask) {
    word t = ((*a >> n) ^ *b) & mask;
    *b ^= t;
    *a ^= t << n;
}

/* Transposes the 8 x 8 bits that each byte position has in the eight words; its own inverse. */
INLINE void transpose(word q[8]) {
    UNROLL for (int i = 0; i < 8; i += 2) swap_bits(&q[i], &q[i + 1], 1, splat(ONES(0x55)));
    UNROLL for (int i = 0; i < 8; i++) if (!(i & 2))
        swap_bits(&q[i], &q[i + 2], 2, splat(ONES(0x33)));
    UNROLL for (int i = 0; i < 4; i++) swap_bits(&q[i], &q[i + 4], 4, splat(ONES(0x0f)));
}

INLINE void load(word q[8], const uint8_t *in) {
    UNROLL for (int i = 0; i < 8; i++) memcpy(&q[i], in + i * AES_BLOCK, AES_BLOCK);
    transpose(q);
}

INLINE void store(uint8_t *out, word q[8]) {
    transpose(q);
    UNROLL for (int i = 0; i < 8; i++) memcpy(out + i * AES_BLOCK, &q[i], AES_BLOCK);
}

/* ---- SubBytes ----------------------------------------------------------------------------------
 *
 * The circuit of J. Boyar and R. Peralta, "A new combinational logic minimization technique with
 * applications to cryptology" (SEA 2010; ePrint 2009/191), in its later form of 115 gates: a linear
 * layer into shared sums y, the inversion in GF(2^8) by way of GF(2^4), a linear layer out. Names
 * are the paper's; its bit 0 is the most significant one, plane 7 here.
 */
INLINE void sub_bytes(word q[8]) {
    const word x0 = q[7], x1 = q[6], x2 = q[5], x3 = q[4];
    const word x4 = q[3], x5 = q[2], x6 = q[1], x7 = q[0];

    const word y14 = x3 ^ x5, y13 = x0 ^ x6, y9 = x0 ^ x3, y8 = x0 ^ x5;
    const word t0 = x1 ^ x2;
    const word y1 = t0 ^ x7, y4 = y1 ^ x3, y12 = y13 ^ y14, y2 = y1 ^ x0;
    const word y5 = y1 ^ x6, y3 = y5 ^ y8;
    const word t1 = x4 ^ y12;
    const word y15 = t1 ^ x5, y20 = t1 ^ x1, y6 = y15 ^ x7, y10 = y15 ^ t0;
    const word y11 = y20 ^ y9, y7 = x7 ^ y11, y17 = y10 ^ y11, y19 = y10 ^ y8;
    const word y16 = t0 ^ y11, y21 = y13 ^ y16, y18 = x0 ^ y16;

    const word t2 = y12 & y15, t3 = y3 & y6, t4 = t3 ^ t2;
    const word t5 = y4 & x7, t6 = t5 ^ t2, t7 = y13 & y16;
    const word t8 = y5 & y1, t9 = t8 ^ t7, t10 = y2 & y7, t11 = t10 ^ t7;
    const word t12 = y9 & y11, t13 = y14 & y17, t14 = t13 ^ t12;
    const word t15 = y8 & y10, t16 = t15 ^ t12;
    const word t17 = t4 ^ t14, t18 = t6 ^ t16, t19 = t9 ^ t14, t20 = t11 ^ t16;
    const word t21 = t17 ^ y20, t22 = t18 ^ y19, t23 = t19 ^ y21, t24 = t20 ^ y18;

    const word t25 = t21 ^ t22, t26 = t21 & t23, t27 = t24 ^ t26, t28 = t25 & t27;
    const word t29 = t28 ^ t22, t30 = t23 ^ t24, t31 = t22 ^ t26, t32 = t31 & t30;
    const word t33 = t32 ^ t24, t34 = t23 ^ t33, t35 = t27 ^ t33, t36 = t24 & t35;
    const word t37 = t36 ^ t34, t38 = t27 ^ t36, t39 = t29 & t38, t40 = t25 ^ t39;
    const word t41 = t40 ^ t37, t42 = t29 ^ t33, t43 = t29 ^ t40, t44 = t33 ^ t37;
    const word t45 = t42 ^ t41;

    const word z0 = t44 & y15, z1 = t37 & y6, z2 = t33 & x7, z3 = t43 & y16;
    const word z4 = t40 & y1, z5 = t29 & y7, z6 = t42 & y11, z7 = t45 & y17;
    const word z8 = t41 & y10, z9 = t44 & y12, z10 = t37 & y3, z11 = t33 & y4;
    const word z12 = t43 & y13, z13 = t40 & y5, z14 = t29 & y2, z15 = t42 & y9;
    const word z16 = t45 & y14, z17 = t41 & y8;

    const word t46 = z15 ^ z16, t47 = z10 ^ z11, t48 = z5 ^ z13, t49 = z9 ^ z10;
    const word t50 = z2 ^ z12, t51 = z2 ^ z5, t52 = z7 ^ z8, t53 = z0 ^ z3;
    const word t54 = z6 ^ z7, t55 = z16 ^ z17, t56 = z12 ^ t48, t57 = t50 ^ t53;
    const word t58 = z4 ^ t46, t59 = z3 ^ t54, t60 = t46 ^ t57, t61 = z14 ^ t57;
    const word t62 = t52 ^ t58, t63 = t49 ^ t58, t64 = z4 ^ t59, t65 = t61 ^ t62;
    const word t66 = z1 ^ t63, t67 = t64 ^ t65, s3 = t53 ^ t66;

    q[7] = t59 ^ t63;
    q[6] = t64 ^ ~s3;
    q[5] = t55 ^ ~t67;
    q[4] = s3;
    q[3] = t51 ^ t66;
    q[2] = t47 ^ t65;
    q[1] = t56 ^ ~t62;
    q[0] = t48 ^ ~t60;
}

/* The inverse of the affine map of FIPS 197, 5.1.1: bit i = b[i+2] ^ b[i+5] ^ b[i+7] ^ 05[i]. */
INLINE void affine_inverse(word q[8]) {
    word b[8];
    UNROLL for (int i = 0; i < 8; i++) b[i] = q[i];
    UNROLL for (int i = 0; i < 8; i++) {
        q[i] = b[(i + 2) % 8] ^ b[(i + 5) % 8] ^ b[(i + 7) % 8];
        if (0x05 >> i & 1)
            q[i] = ~q[i];
    }
}

/* S is inversion, then the affine map A; so S^-1 = A^-1 S A^-1, and one circuit serves both. */
INLINE void inv_sub_bytes(word q[8]) {
    affine_inverse(q);
    sub_bytes(q);
    affine_inverse(q);
}

/* ---- ShiftRows and MixColumns ---------------------------------------------------------------- */

INLINE word choose(word mask, word a, word b) { return (a & mask) | (b & ~mask); }

/* Row r moves by r columns: rows 2 and 3 by two first, then rows 1 and 3 by one. Only shuffles of
 * 32-bit columns are needed, which SSE2 and NEON have, where a shuffle of bytes is not baseline. */
INLINE void shift_rows(word q[8]) {
    UNROLL for (int i = 0; i < 8; i++) {
        word t = choose(ROWS(0, 0, 255, 255), PERMUTE(columns, q[i], 2, 3, 0, 1), q[i]);
        q[i] = choose(ROWS(0, 255, 0, 255), PERMUTE(columns, t, 1, 2, 3, 0), t);
    }
}

INLINE void inv_shift_rows(word q[8]) {
    UNROLL for (int i = 0; i < 8; i++) {
        word t = choose(ROWS(0, 0, 255, 255), PERMUTE(columns, q[i], 2, 3, 0, 1), q[i]);
        q[i] = choose(ROWS(0, 255, 0, 255), PERMUTE(columns, t, 3, 0, 1, 2), t);
    }
}

/* Byte r of every column takes byte r + 1, or r + 2. */
INLINE word rows_up1(word x) {
    columns c = (columns)x;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (word)((c >> 8) | (c << 24));
#else
    return (word)((c << 8) | (c >> 24));
#endif
}

INLINE word rows_up2(word x) { return PERMUTE(halves, x, 1, 0, 3, 2, 5, 4, 7, 6); }

/* q += 2 a in every byte, modulo x^8 + x^4 + x^3 + x + 1. */
INLINE void add_double(word q[8], const word a[8]) {
    q[0] ^= a[7];
    q[1] ^= a[0] ^ a[7];
    q[2] ^= a[1];
    q[3] ^= a[2] ^ a[7];
    q[4] ^= a[3] ^ a[7];
    q[5] ^= a[4];
    q[6] ^= a[5];
    q[7] ^= a[6];
}

/* With s = a + up1(a): 2a + 3 up1(a) + up2(a) + up3(a) = 2s + up1(a) + up2(s). */
INLINE void mix_columns(word q[8]) {
    word s[8];
    UNROLL for (int i = 0; i < 8; i++) {
        word up = rows_up1(q[i]);
        s[i] = q[i] ^ up;
        q[i] = up ^ rows_up2(s[i]);
    }
    add_double(q, s);
}

/* The inverse matrix is the matrix of MixColumns times that of a + 4 (a + up2(a)). */
INLINE void inv_mix_columns(word q[8]) {
    word s[8];
    UNROLL for (int i = 0; i < 8; i++) s[i] = q[i] ^ rows_up2(q[i]);
    q[0] ^= s[6];
    q[1] ^= s[6] ^ s[7];
    q[2] ^= s[0] ^ s[7];
    q[3] ^= s[1] ^ s[6];
    q[4] ^= s[2] ^ s[6] ^ s[7];
    q[5] ^= s[3] ^ s[7];
    q[6] ^= s[4];
    q[7] ^= s[5];
    mix_columns(q);
}

/* ---- whole blocks ---------------------------------------------------------------------------- */

INLINE void add_round_key(word q[8], const uint8_t round_key[AES_BLOCK]) {
    word k;
    memcpy(&k, round_key, AES_BLOCK);
    UNROLL for (int i = 0; i < 8; i++) {
        word bit = (k >> i) & splat(ONES(1));
        q[i] ^= (bit << 8) - bit; /* 255 times each byte: the same bit for all eight blocks */
    }
}

CLEAR_REGISTERS void bs_encrypt8(const aes_key *key, uint8_t out[BS_BYTES],
                                 const uint8_t in[BS_BYTES]) {
    word q[8];
    load(q, in);
    add_round_key(q, key->rk[0]);
    for (uint32_t r = 1; r < key->rounds; r++) {
        sub_bytes(q);
        shift_rows(q);
        mix_columns(q);
        add_round_key(q, key->rk[r]);
    }
    sub_bytes(q);
    shift_rows(q);
    add_round_key(q, key->rk[key->rounds]);
    store(out, q);
}

CLEAR_REGISTERS void bs_decrypt8(const aes_key *key, uint8_t out[BS_BYTES],
                                 const uint8_t in[BS_BYTES]) {
    word q[8];
    load(q, in);
    add_round_key(q, key->rk[key->rounds]);
    for (uint32_t r = key->rounds - 1; r; r--) {
        inv_shift_rows(q);
        inv_sub_bytes(q);
        add_round_key(q, key->rk[r]);
        inv_mix_columns(q);
    }
    inv_shift_rows(q);
    inv_sub_bytes(q);
    add_round_key(q, key->rk[0]);
    store(out, q);
}

CLEAR_REGISTERS void bs_transpose(word q[BS_BLOCKS]) { transpose(q); }

CLEAR_REGISTERS void bs_round8(word out[BS_BLOCKS], const word in[BS_BLOCKS]) {
    word q[8];
    memcpy(q, in, sizeof q);
    sub_bytes(q);
    shift_rows(q);
    mix_columns(q);
    memcpy(out, q, sizeof q);
}

CLEAR_REGISTERS void bs_sub_planes(word q[BS_BLOCKS]) { sub_bytes(q); }

CLEAR_REGISTERS void bs_sub_bytes(uint8_t bytes[AES_BLOCK]) {
    word q[8] = {{0}};
    memcpy(&q[0], bytes, AES_BLOCK);
    transpose(q);
    sub_bytes(q);
    transpose(q);
    memcpy(bytes, &q[0], AES_BLOCK);
}

/* ---- any number of blocks -------------------------------------------------------------------- */

static void portable_blocks(const aes_key *enc, uint8_t *out, const uint8_t *in, size_t nblocks) {
    uint8_t group[BS_BYTES] = {0};

    for (; nblocks >= BS_BLOCKS; nblocks -= BS_BLOCKS, in += BS_BYTES, out += BS_BYTES)
        bs_encrypt8(enc, out, in);
    if (nblocks) {
        memcpy(group, in, nblocks * AES_BLOCK);
        bs_encrypt8(enc, group, group);
        memcpy(out, group, nblocks * AES_BLOCK);
        ccmem_wipe(group, sizeof group);
    }
    burn_stack();
}

static void portable_decrypt(const aes_key *enc, const aes_key *dec, uint8_t block[AES_BLOCK]) {
    uint8_t group[BS_BYTES] = {0};
    (void)dec;

    memcpy(group, block, AES_BLOCK);
    bs_decrypt8(enc, group, group);
    memcpy(block, group, AES_BLOCK);
    ccmem_wipe(group, sizeof group);
    burn_stack();
}

const aes_ops aes_portable = {.encrypt = portable_blocks, .decrypt_block = portable_decrypt};
