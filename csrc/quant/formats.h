/* SPDX-License-Identifier: Apache-2.0
 * The table of block formats (ccmem_block_format): their sizes, and where in a block what lies.
 * GGUF's layouts are those of ggml-common.h, as its Python package gguf reads them. */
#ifndef CCMEM_QUANT_FORMATS_H
#define CCMEM_QUANT_FORMATS_H

#include "ccmem.h"

enum {
    BLOCK_SMALL = 32,  /* elements of a block of Q4_0 to Q8_0 and IQ4_NL */
    BLOCK_SUPER = 256, /* and of the K formats and IQ4_XS */
    BLOCK_ELEMENTS_MAX = BLOCK_SUPER,
    BLOCK_BYTES_MAX = 210,
    BLOCK_GROUPS_MAX = 16 /* runs of elements in a block that have a scale each */
};

/* Sizes of a format. */
typedef struct block_format {
    uint16_t elements, bytes; /* of a block */
    uint8_t group;            /* elements that share a scale; a block's at most */
    uint8_t offset;           /* 1 where something is added to, or taken from, scale * q */
} block_format;

/* By ccmem_block_format. */
extern const block_format block_formats[CCMEM_BLOCK_FORMATS];

/* Where what lies in a block, in bytes. d: float16, the factor of the whole block; m: float16,
 * the block's offset, or the factor of the groups' offsets. */
enum {
    Q4_0_D = 0,
    Q4_0_Q = 2, /* as of all 4-bit ones: 16 bytes, element i below element i + 16 */

    Q4_1_D = 0,
    Q4_1_M = 2,
    Q4_1_Q = 4,

    Q5_0_D = 0,
    Q5_0_HIGH = 2, /* 32 bits, little-endian: bit i is the fifth of element i */
    Q5_0_Q = 6,

    Q5_1_D = 0,
    Q5_1_M = 2,
    Q5_1_HIGH = 4,
    Q5_1_Q = 8,

    Q8_0_D = 0,
    Q8_0_Q = 2, /* 32 signed bytes */

    Q2_K_SCALES = 0, /* 16 bytes, one of each 16 elements: scale below, offset above */
    Q2_K_Q = 16,     /* 2 x 32 bytes: bits 2j of byte i are element 128h + 32j + i */
    Q2_K_D = 80,
    Q2_K_M = 82,

    Q3_K_HIGH = 0,    /* 32 bytes: bit j of byte i is the third of element 32j + i; 0: less 4 */
    Q3_K_Q = 32,      /* as Q2_K_Q */
    Q3_K_SCALES = 96, /* 16 numbers of 6 bits, less 32: see unpack.c */
    Q3_K_D = 108,

    Q4_K_D = 0,
    Q4_K_M = 2,
    Q4_K_SCALES = 4, /* 8 scales and 8 offsets of 6 bits: see unpack.c */
    Q4_K_Q = 16,     /* 4 x 32 bytes: element 64h + i below element 64h + 32 + i */

    Q5_K_D = 0,
    Q5_K_M = 2,
    Q5_K_SCALES = 4,
    Q5_K_HIGH = 16, /* 32 bytes: bit j of byte i is the fifth of element 32j + i */
    Q5_K_Q = 48,

    Q6_K_Q = 0,        /* 2 x 64 bytes: elements 128h + i below 128h + 64 + i, i < 64 */
    Q6_K_HIGH = 128,   /* 2 x 32 bytes: bits 2j of byte i are those of element 128h + 32j + i */
    Q6_K_SCALES = 192, /* 16 signed bytes */
    Q6_K_D = 208,

    IQ4_NL_D = 0,
    IQ4_NL_Q = 2, /* indices of the 16 values of IQ4_VALUES */

    IQ4_XS_D = 0,
    IQ4_XS_HIGH = 2, /* 16 bits, little-endian: bits 2j are the upper ones of scale j, */
    IQ4_XS_LOW = 4,  /* 4 bytes: its lower four, scale 2j below 2j + 1; less 32 */
    IQ4_XS_Q = 8,    /* 8 x 16 bytes as IQ4_NL_Q */

    GROUP_SCALE = 0,
    GROUP_OFFSET = 4, /* with _ZP */
    GROUP_HEAD = 4,   /* bytes before q's, */
    GROUP_HEAD_ZP = 8 /* with _ZP */
};

/* The values that IQ4 formats choose from. */
#define IQ4_VALUES {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

#endif
