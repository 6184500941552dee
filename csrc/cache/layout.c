/* SPDX-License-Identifier: Apache-2.0
 * How the rows of a layer lie in blocks and records. */
#include "cache/layout.h"

#include "kernels/attention.h"
#include "platform/dtype.h"
#include "platform/round.h"

enum {
    BLOCK_BYTES = 4096, /* so a block, its scores and what they are made of stay in an L1 */
    TOKENS_MIN = ATTENTION_TOKENS,
    TOKENS_MAX = 128, /* more would leave many records at the end of a sequence */
    HEADS_MAX = 65536,
    LINE = 64 /* bytes of a block of AEGIS-128X2 */
};

int cache_layout_of(cache_layout *l, const ccmem_cache_layer *layer) {
    const size_t element = dtype_size(layer->dtype);
    const uint32_t size[2] = {layer->key_size, layer->value_size};
    size_t widest = 0, scales = layer->dtype == CCMEM_I8 ? sizeof(float) : 0;
    if (!element || !layer->heads || layer->heads > HEADS_MAX)
        return 0;
    *l = (cache_layout){.dtype = layer->dtype, .element = element, .heads = layer->heads};
    for (int which = 0; which < 2; which++) {
        if (!size[which] || size[which] > CCMEM_CACHE_ROW_MAX)
            return 0;
        l->size[which] = size[which];
        l->row[which] = round_up(size[which] * element, ATTENTION_PAD);
        l->padded[which] = l->row[which] / element;
        if (l->row[which] > widest)
            widest = l->row[which];
    }
    l->tokens = BLOCK_BYTES / widest / TOKENS_MIN * TOKENS_MIN;
    if (l->tokens < TOKENS_MIN)
        l->tokens = TOKENS_MIN;
    if (l->tokens > TOKENS_MAX)
        l->tokens = TOKENS_MAX;
    for (int which = 0; which < 2; which++)
        l->block[which] = round_up(l->tokens * (l->row[which] + scales), LINE);
    l->group = l->heads * (l->block[0] + l->block[1]);
    l->record = round_up(l->heads * (l->row[0] + l->row[1] + 2 * scales), LINE);
    return 1;
}
