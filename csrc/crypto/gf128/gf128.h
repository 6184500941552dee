/* SPDX-License-Identifier: Apache-2.0
 * Powers of x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, the field of the XTS tweaks
 * (IEEE 1619-2018, 5.2). Elements are 16 bytes, little-endian: bit i of byte j is x^(8j + i). */
#ifndef CCMEM_GF128_H
#define CCMEM_GF128_H

#include "platform/cpu.h"

enum {
    GF_CHUNK = 256, /* blocks reached by one multiplication: 4 KiB */
    /* With the further lanes of a vector that starts at the last, and all times x^64. */
    GF_POWERS = GF_CHUNK + 4 + 64,
    GF_CHUNKS = 16, /* chunks of the largest page */
    GF_FAR = 8      /* 2^8 times 16 chunks: data units of 2^20 blocks */
};

/* x^i; x^(256 i); x^(4096 2^i). Public constants, filled by gf128_init() before any use. */
extern uint64_t gf_power[GF_POWERS][2];
extern uint64_t gf_chunk_power[GF_CHUNKS][2];
extern uint64_t gf_far_power[GF_FAR][2];

void gf128_init(void);

/* The remainder of the field polynomial: x^128 = x^7 + x^2 + x + 1. */
#define GF_REMAINDER 0x87

#endif
