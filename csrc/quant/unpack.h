/* SPDX-License-Identifier: Apache-2.0
 * One block taken apart into whole numbers and the scales of its groups, for every format in the
 * same form. What it gives is plaintext: whoever asks for it wipes it. */
#ifndef CCMEM_QUANT_UNPACK_H
#define CCMEM_QUANT_UNPACK_H

#include "quant/formats.h"

/* Element i, of group j = i / group, is d * step[j] * q[i] - m * least[j]; the latter only where
 * the format has offsets. */
typedef struct block_numbers {
    int8_t q[BLOCK_ELEMENTS_MAX];
    int16_t step[BLOCK_GROUPS_MAX], least[BLOCK_GROUPS_MAX];
    float d, m;
} block_numbers;

/* Takes a block of the format apart; NULL for CCMEM_INT8_ROW, which has no blocks. */
typedef void (*block_unpack)(const uint8_t *block, const block_format *format, block_numbers *out);
extern const block_unpack block_unpackers[CCMEM_BLOCK_FORMATS];

#endif
