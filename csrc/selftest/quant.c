/* SPDX-License-Identifier: Apache-2.0
 * Blocks of quantised weights. What known bytes stand for was computed by gguf's Python package,
 * and for groups from their definition. What quantisers make of known floats stands for these. */
#include <math.h>
#include <string.h>

#include "quant/formats.h"
#include "selftest/selftest.h"

enum { BLOCKS = 2 };

/* FNV-1a (Fowler, Noll, Vo; draft-eastlake-fnv) of the floats of BLOCKS blocks, little-endian. */
static const uint64_t answers[CCMEM_BLOCK_FORMATS] = {
    [CCMEM_Q4_0] = UINT64_C(0xd0683da58b454fe6),
    [CCMEM_Q4_1] = UINT64_C(0xf2db93ad019649ad),
    [CCMEM_Q5_0] = UINT64_C(0x24bcc668ddafc9c9),
    [CCMEM_Q5_1] = UINT64_C(0x0f7af3ca1210ac77),
    [CCMEM_Q8_0] = UINT64_C(0x426540cea0f64586),
    [CCMEM_Q2_K] = UINT64_C(0x9a52899fa2f8e5f0),
    [CCMEM_Q3_K] = UINT64_C(0x287b167e29224f8a),
    [CCMEM_Q4_K] = UINT64_C(0x0154eaea726f78d3),
    [CCMEM_Q5_K] = UINT64_C(0x98888593922e1bc1),
    [CCMEM_Q6_K] = UINT64_C(0xef17e8bb47884e5c),
    [CCMEM_IQ4_NL] = UINT64_C(0x8206f74a7534b092),
    [CCMEM_IQ4_XS] = UINT64_C(0xf172fa6980e21140),
    [CCMEM_INT4_G32] = UINT64_C(0x9d46f65add4b5f8a),
    [CCMEM_INT4_G64] = UINT64_C(0xd2be69460ab35605),
    [CCMEM_INT4_G128] = UINT64_C(0x2dc25e3889832206),
    [CCMEM_INT4_G32_ZP] = UINT64_C(0x79aa9dcf8ff8064d),
    [CCMEM_INT4_G64_ZP] = UINT64_C(0x1578a139982b18a9),
    [CCMEM_INT4_G128_ZP] = UINT64_C(0x426774f2805e005e),
    [CCMEM_INT8_G32] = UINT64_C(0x9d64fe0ea6254d2b),
    [CCMEM_INT8_G64] = UINT64_C(0x5efdd2c0473c85c0),
    [CCMEM_INT8_G128] = UINT64_C(0x0cd888c395b04265),
    [CCMEM_INT8_G32_ZP] = UINT64_C(0x221521e1733c65ec),
    [CCMEM_INT8_G64_ZP] = UINT64_C(0xe7a9df402ed3cbb0),
    [CCMEM_INT8_G128_ZP] = UINT64_C(0x61906db8d6a80ce9),
};

static uint64_t sum_of(const float *x, size_t n) {
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        for (int shift = 0; shift < 32; shift += 8)
            sum = (sum ^ (bits >> shift & 255)) * UINT64_C(0x100000001b3);
    }
    return sum;
}

static void fill(ccmem_block_format number, uint8_t *blocks) {
    static const uint8_t heads[8] = {0xa4, 0x70, 0xbd, 0x3e,
                                     0x66, 0x66, 0x46, 0xc0}; /* .37, -3.1 */
    const block_format *format = &block_formats[number];
    selftest_fill(blocks, (size_t)BLOCKS * format->bytes, (uint64_t)number + 1);
    for (size_t b = 0; b < BLOCKS; b++) {
        uint8_t *block = blocks + b * format->bytes;
        if (number >= CCMEM_INT4_G32) {
            memcpy(block, heads, format->offset ? 8 : 4);
            continue;
        }
        memset(block, 0x2c, 4); /* a float16 of 0.065, wherever it is */
        memset(block + format->bytes - 4, 0x2c, 4);
    }
}

/* Whole numbers from -8 to 7, at which no format is off by more than half a unit. */
static int quantises(ccmem_block_format number, uint8_t *blocks, float *x, float *back) {
    const size_t n = (size_t)BLOCKS * block_formats[number].elements;
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((int)(i * 11 % 16) - 8);
    if (ccmem_blocks_quantize(number, x, BLOCKS, blocks) != CCMEM_OK ||
        ccmem_blocks_dequantize(number, blocks, BLOCKS, back) != CCMEM_OK)
        return 0;
    const float most = number == CCMEM_Q2_K ? 3.0f : number == CCMEM_Q3_K ? 1.5f : 0.8f;
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(back[i] - x[i]) <= most))
            return 0;
    return 1;
}

static int rows_of_bytes(void) {
    const float x[4] = {0, 1, -127, 63};
    float scale = 0, back[4];
    uint8_t q[4];
    return ccmem_rows_quantize(x, 1, 4, q, &scale) == CCMEM_OK && scale == 1 &&
           ccmem_blocks_dequantize(CCMEM_INT8_ROW, q, 4, back) == CCMEM_OK &&
           !memcmp(back, x, sizeof x);
}

ccmem_status selftest_quant(void) {
    uint8_t blocks[BLOCKS * BLOCK_BYTES_MAX];
    float x[BLOCKS * BLOCK_ELEMENTS_MAX], back[BLOCKS * BLOCK_ELEMENTS_MAX];
    int good = rows_of_bytes();

    for (int i = 0; good && i < CCMEM_INT8_ROW; i++) {
        const ccmem_block_format number = (ccmem_block_format)i;
        fill(number, blocks);
        good = ccmem_blocks_dequantize(number, blocks, BLOCKS, x) == CCMEM_OK &&
               sum_of(x, (size_t)BLOCKS * block_formats[number].elements) == answers[number] &&
               quantises(number, blocks, x, back);
    }
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
