/* SPDX-License-Identifier: Apache-2.0
 * Whole numbers and scales put into blocks: what unpack.c takes apart. */
#ifndef CCMEM_QUANT_PACK_H
#define CCMEM_QUANT_PACK_H

#include "quant/formats.h"

/* What is to be in a block. d and m are bits of float16, or of float32 in the group formats. */
typedef struct block_parts {
    uint32_t d, m;
    int8_t scale[BLOCK_GROUPS_MAX]; /* of the groups, whole multiples of d, */
    int8_t minus[BLOCK_GROUPS_MAX]; /* and what m is multiplied by, to be taken off */
    int8_t q[BLOCK_ELEMENTS_MAX];   /* as unpack.c gives them; of IQ4 the indices of values */
} block_parts;

/* Writes a block of the format, which is not CCMEM_INT8_ROW. */
void block_pack(ccmem_block_format number, const block_parts *parts, uint8_t *block);

#endif
