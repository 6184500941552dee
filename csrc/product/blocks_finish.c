/* SPDX-License-Identifier: Apache-2.0
 * What becomes of the partial sums of products with quantised blocks. */
#include "product/blocks.h"

void blocks_finish(const blocks_call *l, float *sums, size_t apart, uint64_t row, size_t n,
                   size_t r, size_t end) {
    enum { MOST = 64 }; /* sums that are added up by one call */
    float total[MOST];
    for (size_t rows; r < end; r += rows, sums += rows * BLOCKS_LANES) {
        rows = end - r < MOST ? end - r : MOST;
        const size_t most = rows * BLOCKS_LANES == apart ? MOST / rows : 1;
        for (size_t i = 0, h; i < n; i += h) {
            h = n - i < most ? n - i : most;
            l->ops->total(total, sums + i * apart, h * rows);
            for (size_t j = 0; j < h * rows; j++) {
                const size_t o = (size_t)row + i + j / rows, of_x = r + j % rows;
                if (of_x < l->rows)
                    blocks_put(l, of_x, o, total[j]);
            }
        }
    }
}
