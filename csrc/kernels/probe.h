/* SPDX-License-Identifier: Apache-2.0
 * Loops that keep one unit of the processor busy and do nothing else: what the benchmarks compare
 * the kernels of a tier with. */
#ifndef CCMEM_PROBE_H
#define CCMEM_PROBE_H

#include <stdint.h>

typedef struct probe_ops {
    /* Runs `turns` times eight AES rounds that do not wait for each other, on the tier's widest
     * registers; NULL: the tier has no AES instructions. */
    void (*aes_rounds)(uint64_t turns);
    uint32_t aes_width; /* bytes that a round is of */
    /* Loads n bytes, a multiple of 256, by the widest loads, and keeps nothing. */
    void (*load)(const uint8_t *memory, uint64_t n);
} probe_ops;

extern const probe_ops probe_portable, probe_aesni, probe_vaes256, probe_vaes512;

#endif
