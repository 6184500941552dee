/* SPDX-License-Identifier: Apache-2.0
 * Without a branch or an address that depends on a block: the loops are for a compiler's vectors.
 */
#include "quant/unpack.h"

#include "simd/scalar.h"

/* Once is enough of what all formats use. */
#define NOINLINE __attribute__((noinline))

static uint32_t word16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }

static uint32_t word32(const uint8_t *p) { return word16(p) | word16(p + 2) << 16; }

static NOINLINE float half_at(const uint8_t *p) { return float_of_half(word16(p)); }

static float float_at(const uint8_t *p) { return float_of_bits(word32(p)); }

/* ---- whole numbers --------------------------------------------------------------------------- */

/* 2n numbers of n bytes: the lower halves, then the upper ones, less `zero`. */
static NOINLINE void nibbles(const uint8_t *from, size_t n, int zero, int8_t *q) {
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)((from[i] & 15) - zero);
        q[i + n] = (int8_t)((from[i] >> 4) - zero);
    }
}

static void bytes(const uint8_t *from, size_t n, int8_t *q) {
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)from[i];
}

/* Adds 16 to number i for bit i of 32. */
static NOINLINE void fifth_bits(const uint8_t *from, int8_t *q) {
    const uint32_t high = word32(from);
    for (size_t i = 0; i < BLOCK_SMALL; i++)
        q[i] = (int8_t)(q[i] + (int)(high >> i & 1) * 16);
}

/* 256 numbers of two bits, of which 128 lie in 32 bytes. */
static NOINLINE void pairs(const uint8_t *from, int8_t *q) {
    for (size_t h = 0; h < BLOCK_SUPER; h += 128, from += 32)
        for (size_t j = 0; j < 4; j++)
            for (size_t i = 0; i < 32; i++)
                q[h + 32 * j + i] = (int8_t)(from[i] >> 2 * j & 3);
}

/* Indices become values: each value is compared with, so that no table is read at an address that
 * tells of the index. */
static NOINLINE void iq4_values(int8_t *q, size_t n) {
    static const int8_t values[16] = IQ4_VALUES;
    for (size_t i = 0; i < n; i++) {
        int8_t value = 0;
        for (int8_t k = 0; k < 16; k++)
            value |= (int8_t)(-(q[i] == k) & values[k]);
        q[i] = value;
    }
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* Of a block that is one group. */
static inline void one_step(block_numbers *out, float scale) {
    out->d = scale;
    out->step[0] = 1;
}

static inline void one_offset(block_numbers *out, float offset) {
    out->m = offset;
    out->least[0] = -1;
}

/* Q4_K's and Q5_K's: bytes 0 to 3 have the scales of groups 0 to 3 in their lower 6 bits, bytes 4
 * to 7 the offsets of these; of groups 4 to 7, bytes 8 to 11 have the lower 4 bits, scale below
 * offset, and the upper 2 bits of bytes 0 to 7 the others. */
static inline void six_bits(const uint8_t *from, block_numbers *out) {
    for (size_t j = 0; j < 4; j++) {
        out->step[j] = from[j] & 63;
        out->least[j] = from[j + 4] & 63;
        out->step[j + 4] = (int16_t)((from[j + 8] & 15) | (from[j] >> 6 << 4));
        out->least[j + 4] = (int16_t)((from[j + 8] >> 4) | (from[j + 4] >> 6 << 4));
    }
}

/* Q3_K's: scale j has its lower 4 bits in byte j % 8, below those of scale j + 8, and its upper
 * 2 bits in byte 8 + j % 4, bits 2 * (j / 4). */
static inline void six_bits_signed(const uint8_t *from, block_numbers *out) {
    for (size_t j = 0; j < 16; j++) {
        const int low = from[j % 8] >> 4 * (j / 8) & 15;
        const int high = from[8 + j % 4] >> 2 * (j / 4) & 3;
        out->step[j] = (int16_t)((low | high << 4) - 32);
    }
}

/* ---- GGUF's formats -------------------------------------------------------------------------- */

#define FORMAT(name)                                                                               \
    static void name(const uint8_t *block, const block_format *format, block_numbers *out)

FORMAT(q4_0) {
    (void)format;
    one_step(out, half_at(block + Q4_0_D));
    nibbles(block + Q4_0_Q, 16, 8, out->q);
}

FORMAT(q4_1) {
    (void)format;
    one_step(out, half_at(block + Q4_1_D));
    one_offset(out, half_at(block + Q4_1_M));
    nibbles(block + Q4_1_Q, 16, 0, out->q);
}

FORMAT(q5_0) {
    (void)format;
    one_step(out, half_at(block + Q5_0_D));
    nibbles(block + Q5_0_Q, 16, 16, out->q);
    fifth_bits(block + Q5_0_HIGH, out->q);
}

FORMAT(q5_1) {
    (void)format;
    one_step(out, half_at(block + Q5_1_D));
    one_offset(out, half_at(block + Q5_1_M));
    nibbles(block + Q5_1_Q, 16, 0, out->q);
    fifth_bits(block + Q5_1_HIGH, out->q);
}

FORMAT(q8_0) {
    (void)format;
    one_step(out, half_at(block + Q8_0_D));
    bytes(block + Q8_0_Q, BLOCK_SMALL, out->q);
}

FORMAT(q2_k) {
    (void)format;
    out->d = half_at(block + Q2_K_D);
    out->m = half_at(block + Q2_K_M);
    for (size_t j = 0; j < 16; j++) {
        out->step[j] = block[Q2_K_SCALES + j] & 15;
        out->least[j] = block[Q2_K_SCALES + j] >> 4;
    }
    pairs(block + Q2_K_Q, out->q);
}

FORMAT(q3_k) {
    (void)format;
    out->d = half_at(block + Q3_K_D);
    six_bits_signed(block + Q3_K_SCALES, out);
    pairs(block + Q3_K_Q, out->q);
    for (size_t j = 0; j < 8; j++)
        for (size_t i = 0; i < 32; i++)
            out->q[32 * j + i] =
                (int8_t)(out->q[32 * j + i] + (block[Q3_K_HIGH + i] >> j & 1) * 4 - 4);
}

FORMAT(q4_k) {
    (void)format;
    out->d = half_at(block + Q4_K_D);
    out->m = half_at(block + Q4_K_M);
    six_bits(block + Q4_K_SCALES, out);
    for (size_t h = 0; h < 4; h++)
        nibbles(block + Q4_K_Q + 32 * h, 32, 0, out->q + 64 * h);
}

FORMAT(q5_k) {
    (void)format;
    out->d = half_at(block + Q5_K_D);
    out->m = half_at(block + Q5_K_M);
    six_bits(block + Q5_K_SCALES, out);
    for (size_t h = 0; h < 4; h++)
        nibbles(block + Q5_K_Q + 32 * h, 32, 0, out->q + 64 * h);
    for (size_t j = 0; j < 8; j++)
        for (size_t i = 0; i < 32; i++)
            out->q[32 * j + i] =
                (int8_t)(out->q[32 * j + i] + (block[Q5_K_HIGH + i] >> j & 1) * 16);
}

FORMAT(q6_k) {
    (void)format;
    out->d = half_at(block + Q6_K_D);
    for (size_t j = 0; j < 16; j++)
        out->step[j] = (int8_t)block[Q6_K_SCALES + j];
    for (size_t h = 0; h < 2; h++) {
        int8_t *q = out->q + 128 * h;
        nibbles(block + Q6_K_Q + 64 * h, 64, 32, q);
        for (size_t j = 0; j < 4; j++)
            for (size_t i = 0; i < 32; i++)
                q[32 * j + i] =
                    (int8_t)(q[32 * j + i] + (block[Q6_K_HIGH + 32 * h + i] >> 2 * j & 3) * 16);
    }
}

FORMAT(iq4_nl) {
    (void)format;
    one_step(out, half_at(block + IQ4_NL_D));
    nibbles(block + IQ4_NL_Q, 16, 0, out->q);
    iq4_values(out->q, BLOCK_SMALL);
}

FORMAT(iq4_xs) {
    (void)format;
    out->d = half_at(block + IQ4_XS_D);
    const uint32_t high = word16(block + IQ4_XS_HIGH);
    for (size_t j = 0; j < 8; j++) {
        const int low = block[IQ4_XS_LOW + j / 2] >> 4 * (j % 2) & 15;
        out->step[j] = (int16_t)((low | (int)(high >> 2 * j & 3) << 4) - 32);
        nibbles(block + IQ4_XS_Q + 16 * j, 16, 0, out->q + 32 * j);
    }
    iq4_values(out->q, BLOCK_SUPER);
}

/* ---- groups ---------------------------------------------------------------------------------- */

static size_t group_head(const uint8_t *block, const block_format *format, block_numbers *out) {
    one_step(out, float_at(block + GROUP_SCALE));
    if (!format->offset)
        return GROUP_HEAD;
    one_offset(out, float_at(block + GROUP_OFFSET));
    return GROUP_HEAD_ZP;
}

static void int4_group(const uint8_t *block, const block_format *format, block_numbers *out) {
    block += group_head(block, format, out);
    for (size_t i = 0; i < format->elements; i += BLOCK_SMALL, block += BLOCK_SMALL / 2)
        nibbles(block, BLOCK_SMALL / 2, format->offset ? 0 : 8, out->q + i);
}

static void int8_group(const uint8_t *block, const block_format *format, block_numbers *out) {
    block += group_head(block, format, out);
    bytes(block, format->elements, out->q);
}

const block_unpack block_unpackers[CCMEM_BLOCK_FORMATS] = {
    [CCMEM_Q4_0] = q4_0,
    [CCMEM_Q4_1] = q4_1,
    [CCMEM_Q5_0] = q5_0,
    [CCMEM_Q5_1] = q5_1,
    [CCMEM_Q8_0] = q8_0,
    [CCMEM_Q2_K] = q2_k,
    [CCMEM_Q3_K] = q3_k,
    [CCMEM_Q4_K] = q4_k,
    [CCMEM_Q5_K] = q5_k,
    [CCMEM_Q6_K] = q6_k,
    [CCMEM_IQ4_NL] = iq4_nl,
    [CCMEM_IQ4_XS] = iq4_xs,
    [CCMEM_INT4_G32] = int4_group,
    [CCMEM_INT4_G64] = int4_group,
    [CCMEM_INT4_G128] = int4_group,
    [CCMEM_INT4_G32_ZP] = int4_group,
    [CCMEM_INT4_G64_ZP] = int4_group,
    [CCMEM_INT4_G128_ZP] = int4_group,
    [CCMEM_INT8_G32] = int8_group,
    [CCMEM_INT8_G64] = int8_group,
    [CCMEM_INT8_G128] = int8_group,
    [CCMEM_INT8_G32_ZP] = int8_group,
    [CCMEM_INT8_G64_ZP] = int8_group,
    [CCMEM_INT8_G128_ZP] = int8_group,
};
