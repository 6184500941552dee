/* SPDX-License-Identifier: Apache-2.0
 *
 * Groups of rows of W for many rows of x. A thread takes a group from a counter, opens it as a
 * whole into a block that its L2 holds, and multiplies it with BLOCKS_ROWS rows of x at a time, of
 * these a part that stays in an L1 while all rows of the group pass by. What is added to what, and
 * in which order, is as when rows of W come one after the other. */
#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "product/blocks.h"
#include "product/fetch.h"

uint64_t blocks_group_rows(const blocks_call *l) {
    const uint64_t most = l->sizes->blocks_group / l->row_bytes;
    return most < l->out_features ? most : l->out_features;
}

/* Blocks of W for which BLOCKS_ROWS rows of x take what sizes->blocks_part says; whole lanes. */
static size_t part_of(const blocks_call *l) {
    const size_t n =
        l->sizes->blocks_part / (l->format->elements * BLOCKS_ROWS) / BLOCKS_LANES * BLOCKS_LANES;
    return n ? n : BLOCKS_LANES;
}

static void multiply(const blocks_call *l, float *sums, const uint8_t *w, uint64_t row, size_t h) {
    enum { EACH = BLOCKS_ROWS * BLOCKS_LANES };
    const size_t part = part_of(l);
    for (size_t r = 0; r < l->room; r += BLOCKS_ROWS) {
        const size_t end = l->room - r < BLOCKS_ROWS ? l->room : r + BLOCKS_ROWS;
        for (size_t first = 0, n; first < l->blocks; first += n) {
            n = l->blocks - first < part ? (size_t)l->blocks - first : part;
            const blocks_w rows = {.first = w + first * l->format->bytes,
                                   .number = first,
                                   .n = n,
                                   .rows = h,
                                   .bytes = (size_t)l->row_bytes,
                                   .apart = EACH};
            blocks_add(l, sums, &rows, r, end);
        }
        blocks_finish(l, sums, EACH, row, h, r, end);
    }
}

static void multiply_groups(blocks_call *l, fetch *f, float *sums, uint64_t group) {
    while (!outcome_stopped(&l->end)) {
        const uint64_t row = __atomic_fetch_add(&l->next, group, __ATOMIC_RELAXED);
        if (row >= l->out_features)
            return;
        const uint64_t left = l->out_features - row;
        const size_t h = (size_t)(left < group ? left : group);
        const uint8_t *w;
        ccmem_status status = fetch_whole(f, l->offset + row * l->row_bytes, h * l->row_bytes, &w);
        if (status != CCMEM_OK) {
            outcome_stop(&l->end, status);
            return;
        }
        multiply(l, sums, w, row, h);
    }
}

void blocks_group(void *call, uint64_t begin, uint64_t end) {
    blocks_call *l = call;
    const uint64_t group = blocks_group_rows(l);
    const size_t sums = (size_t)group * BLOCKS_ROWS * BLOCKS_LANES * sizeof(float);
    uint8_t *block;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&l->next, __ATOMIC_RELAXED) >= l->out_features)
        return;
    ccmem_status status =
        ccmem_plain_alloc(sums + fetch_room_whole(l->store, (size_t)(group * l->row_bytes)),
                          &block);
    if (status != CCMEM_OK) {
        outcome_stop(&l->end, status);
        return;
    }
    memset(block, 0, sums);
    fetch f = fetch_from(l->store, block + sums);
    const float_env env = float_env_default();
    multiply_groups(l, &f, (float *)(void *)block, group);
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(block);
}
