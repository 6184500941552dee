/* SPDX-License-Identifier: Apache-2.0
 * Blocks become float32, in threads. */
#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/threads.h"
#include "quant/unpack.h"

/* Elements that are worth another thread. */
enum { GRAIN = 1 << 16 };

typedef struct job {
    ccmem_block_format format;
    const uint8_t *blocks;
    float *out;
} job;

/* Products and sums are rounded one by one, as everywhere: a processor with fused instructions, for
 * which a compiler would use them, sees two loops that it cannot join. */
static CLEAR_REGISTERS void put(const block_numbers *numbers, const block_format *format,
                                float *out) {
    for (size_t j = 0, at = 0; at < format->elements; j++, at += format->group) {
        const float scale = numbers->d * (float)numbers->step[j];
        for (size_t i = at; i < at + format->group; i++)
            out[i] = scale * (float)numbers->q[i];
    }
    if (!format->offset)
        return;
    __asm__ volatile("" : : "r"(out) : "memory");
    for (size_t j = 0, at = 0; at < format->elements; j++, at += format->group) {
        const float offset = -(numbers->m * (float)numbers->least[j]);
        for (size_t i = at; i < at + format->group; i++)
            out[i] += offset;
    }
}

static CLEAR_REGISTERS void put_bytes(const uint8_t *from, uint64_t n, float *out) {
    for (uint64_t i = 0; i < n; i++)
        out[i] = (float)(int8_t)from[i];
}

static CLEAR_REGISTERS void dequantize(void *arg, uint64_t begin, uint64_t end) {
    const job *j = arg;
    const block_format *format = &block_formats[j->format];
    const block_unpack unpack = block_unpackers[j->format];
    const float_env before = float_env_default();
    block_numbers numbers;

    if (unpack) {
        for (uint64_t b = begin; b < end; b++) {
            unpack(j->blocks + b * format->bytes, format, &numbers);
            put(&numbers, format, j->out + b * format->elements);
        }
        ccmem_wipe(&numbers, sizeof numbers);
    } else
        put_bytes(j->blocks + begin, end - begin, j->out + begin);
    float_env_restore(before);
    burn_stack();
}

ccmem_status ccmem_blocks_dequantize(ccmem_block_format format, const uint8_t *blocks,
                                     uint64_t nblocks, float *out) {
    const size_t elements = ccmem_block_elements(format);

    if (!elements || (nblocks && (!blocks || !out)))
        return CCMEM_ERR_ARGUMENT;
    job j = {format, blocks, out};
    parallel_for(nblocks, GRAIN / elements, dequantize, &j);
    return CCMEM_OK;
}
