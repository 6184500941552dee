/* SPDX-License-Identifier: Apache-2.0
 * The layouts, written: see formats.h. */
#include "quant/pack.h"

#include <string.h>

static void put16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v) {
    put16(p, v);
    put16(p + 2, v >> 16);
}

/* n bytes of two numbers each, plus `zero`: element i below element i + n, four bits of each. */
static void nibbles(uint8_t *to, size_t n, int zero, const int8_t *q) {
    for (size_t i = 0; i < n; i++)
        to[i] = (uint8_t)(((q[i] + zero) & 15) | ((q[i + n] + zero) & 15) << 4);
}

/* Bits `bit` of numbers, plus `zero`, `width` bits of each: number 32 * j + i lies in byte i, above
 * those of lower j. */
static void columns(uint8_t *to, size_t count, int zero, int bit, int width, const int8_t *q) {
    memset(to, 0, 32);
    for (size_t j = 0; j < count; j++)
        for (size_t i = 0; i < 32; i++)
            to[i] |=
                (uint8_t)(((q[32 * j + i] + zero) >> bit & ((1 << width) - 1)) << (width * (int)j));
}

/* Bit 4 of 32 numbers, plus `zero`. */
static uint32_t fifth_bits(int zero, const int8_t *q) {
    uint32_t bits = 0;
    for (size_t i = 0; i < BLOCK_SMALL; i++)
        bits |= (uint32_t)((q[i] + zero) >> 4 & 1) << i;
    return bits;
}

static void six_bits(uint8_t *to, const block_parts *parts) {
    for (size_t j = 0; j < 4; j++) {
        const int s = parts->scale[j], m = parts->minus[j];
        const int s4 = parts->scale[j + 4], m4 = parts->minus[j + 4];
        to[j] = (uint8_t)(s | s4 >> 4 << 6);
        to[j + 4] = (uint8_t)(m | m4 >> 4 << 6);
        to[j + 8] = (uint8_t)((s4 & 15) | (m4 & 15) << 4);
    }
}

static void six_bits_signed(uint8_t *to, const block_parts *parts) {
    memset(to, 0, 12);
    for (size_t j = 0; j < 16; j++) {
        const int s = parts->scale[j] + 32;
        to[j % 8] |= (uint8_t)((s & 15) << 4 * (j / 8));
        to[8 + j % 4] |= (uint8_t)(s >> 4 << 2 * (j / 4));
    }
}

static void group(ccmem_block_format number, const block_parts *parts, uint8_t *block) {
    const block_format *format = &block_formats[number];
    put32(block + GROUP_SCALE, parts->d);
    if (format->offset)
        put32(block + GROUP_OFFSET, parts->m);
    block += format->offset ? GROUP_HEAD_ZP : GROUP_HEAD;
    if (number < CCMEM_INT8_G32)
        for (size_t i = 0; i < format->elements; i += BLOCK_SMALL)
            nibbles(block + i / 2, BLOCK_SMALL / 2, format->offset ? 0 : 8, parts->q + i);
    else
        memcpy(block, parts->q, format->elements);
}

void block_pack(ccmem_block_format number, const block_parts *parts, uint8_t *block) {
    const int8_t *q = parts->q;
    switch (number) {
    case CCMEM_Q4_0:
        put16(block + Q4_0_D, parts->d);
        nibbles(block + Q4_0_Q, 16, 8, q);
        return;
    case CCMEM_Q4_1:
        put16(block + Q4_1_D, parts->d);
        put16(block + Q4_1_M, parts->m);
        nibbles(block + Q4_1_Q, 16, 0, q);
        return;
    case CCMEM_Q5_0:
        put16(block + Q5_0_D, parts->d);
        put32(block + Q5_0_HIGH, fifth_bits(16, q));
        nibbles(block + Q5_0_Q, 16, 16, q);
        return;
    case CCMEM_Q5_1:
        put16(block + Q5_1_D, parts->d);
        put16(block + Q5_1_M, parts->m);
        put32(block + Q5_1_HIGH, fifth_bits(0, q));
        nibbles(block + Q5_1_Q, 16, 0, q);
        return;
    case CCMEM_Q8_0:
        put16(block + Q8_0_D, parts->d);
        memcpy(block + Q8_0_Q, q, BLOCK_SMALL);
        return;
    case CCMEM_Q2_K:
        for (size_t j = 0; j < 16; j++)
            block[Q2_K_SCALES + j] = (uint8_t)(parts->scale[j] | parts->minus[j] << 4);
        columns(block + Q2_K_Q, 4, 0, 0, 2, q);
        columns(block + Q2_K_Q + 32, 4, 0, 0, 2, q + 128);
        put16(block + Q2_K_D, parts->d);
        put16(block + Q2_K_M, parts->m);
        return;
    case CCMEM_Q3_K:
        columns(block + Q3_K_HIGH, 8, 4, 2, 1, q);
        columns(block + Q3_K_Q, 4, 4, 0, 2, q);
        columns(block + Q3_K_Q + 32, 4, 4, 0, 2, q + 128);
        six_bits_signed(block + Q3_K_SCALES, parts);
        put16(block + Q3_K_D, parts->d);
        return;
    case CCMEM_Q4_K:
    case CCMEM_Q5_K: {
        const size_t low = number == CCMEM_Q4_K ? Q4_K_Q : Q5_K_Q;
        put16(block + Q4_K_D, parts->d);
        put16(block + Q4_K_M, parts->m);
        six_bits(block + Q4_K_SCALES, parts);
        for (size_t h = 0; h < 4; h++)
            nibbles(block + low + 32 * h, 32, 0, q + 64 * h);
        if (number == CCMEM_Q5_K)
            columns(block + Q5_K_HIGH, 8, 0, 4, 1, q);
        return;
    }
    case CCMEM_Q6_K:
        for (size_t h = 0; h < 2; h++) {
            nibbles(block + Q6_K_Q + 64 * h, 64, 32, q + 128 * h);
            columns(block + Q6_K_HIGH + 32 * h, 4, 32, 4, 2, q + 128 * h);
        }
        memcpy(block + Q6_K_SCALES, parts->scale, 16);
        put16(block + Q6_K_D, parts->d);
        return;
    case CCMEM_IQ4_NL:
        put16(block + IQ4_NL_D, parts->d);
        nibbles(block + IQ4_NL_Q, 16, 0, q);
        return;
    case CCMEM_IQ4_XS: {
        uint32_t high = 0;
        memset(block + IQ4_XS_LOW, 0, 4);
        for (size_t j = 0; j < 8; j++) {
            const int s = parts->scale[j] + 32;
            high |= (uint32_t)(s >> 4) << 2 * j;
            block[IQ4_XS_LOW + j / 2] |= (uint8_t)((s & 15) << 4 * (j % 2));
            nibbles(block + IQ4_XS_Q + 16 * j, 16, 0, q + 32 * j);
        }
        put16(block + IQ4_XS_HIGH, high);
        put16(block + IQ4_XS_D, parts->d);
        return;
    }
    default: group(number, parts, block);
    }
}
