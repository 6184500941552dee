/* SPDX-License-Identifier: Apache-2.0 */
#include "quant/formats.h"

#define GROUPS(name, head, n, bits, plus) [name] = {(n), (head) + (n) * (bits) / 8, (n), (plus)}

const block_format block_formats[CCMEM_BLOCK_FORMATS] = {
    [CCMEM_Q4_0] = {BLOCK_SMALL, 18, BLOCK_SMALL, 0},
    [CCMEM_Q4_1] = {BLOCK_SMALL, 20, BLOCK_SMALL, 1},
    [CCMEM_Q5_0] = {BLOCK_SMALL, 22, BLOCK_SMALL, 0},
    [CCMEM_Q5_1] = {BLOCK_SMALL, 24, BLOCK_SMALL, 1},
    [CCMEM_Q8_0] = {BLOCK_SMALL, 34, BLOCK_SMALL, 0},
    [CCMEM_Q2_K] = {BLOCK_SUPER, 84, 16, 1},
    [CCMEM_Q3_K] = {BLOCK_SUPER, 110, 16, 0},
    [CCMEM_Q4_K] = {BLOCK_SUPER, 144, 32, 1},
    [CCMEM_Q5_K] = {BLOCK_SUPER, 176, 32, 1},
    [CCMEM_Q6_K] = {BLOCK_SUPER, 210, 16, 0},
    [CCMEM_IQ4_NL] = {BLOCK_SMALL, 18, BLOCK_SMALL, 0},
    [CCMEM_IQ4_XS] = {BLOCK_SUPER, 136, 32, 0},
    GROUPS(CCMEM_INT4_G32, GROUP_HEAD, 32, 4, 0),
    GROUPS(CCMEM_INT4_G64, GROUP_HEAD, 64, 4, 0),
    GROUPS(CCMEM_INT4_G128, GROUP_HEAD, 128, 4, 0),
    GROUPS(CCMEM_INT4_G32_ZP, GROUP_HEAD_ZP, 32, 4, 1),
    GROUPS(CCMEM_INT4_G64_ZP, GROUP_HEAD_ZP, 64, 4, 1),
    GROUPS(CCMEM_INT4_G128_ZP, GROUP_HEAD_ZP, 128, 4, 1),
    GROUPS(CCMEM_INT8_G32, GROUP_HEAD, 32, 8, 0),
    GROUPS(CCMEM_INT8_G64, GROUP_HEAD, 64, 8, 0),
    GROUPS(CCMEM_INT8_G128, GROUP_HEAD, 128, 8, 0),
    GROUPS(CCMEM_INT8_G32_ZP, GROUP_HEAD_ZP, 32, 8, 1),
    GROUPS(CCMEM_INT8_G64_ZP, GROUP_HEAD_ZP, 64, 8, 1),
    GROUPS(CCMEM_INT8_G128_ZP, GROUP_HEAD_ZP, 128, 8, 1),
    [CCMEM_INT8_ROW] = {1, 1, 1, 0},
};

size_t ccmem_block_elements(ccmem_block_format format) {
    return (uint32_t)format < CCMEM_BLOCK_FORMATS ? block_formats[format].elements : 0;
}

size_t ccmem_block_bytes(ccmem_block_format format) {
    return (uint32_t)format < CCMEM_BLOCK_FORMATS ? block_formats[format].bytes : 0;
}
