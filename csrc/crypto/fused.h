/* SPDX-License-Identifier: Apache-2.0
 * What is asked of a loop that multiplies pages in the registers it opens them in. */
#ifndef CCMEM_FUSED_H
#define CCMEM_FUSED_H

#include <stddef.h>

/* Some rows of a matrix W, each of in_features elements, that lie in consecutive pages, and one row
 * of x, packed for the products of the same tier, whose block the sums have (kernels/gemv.h). A
 * step is so many bytes of W as the cipher's loop takes at a time or, if that is more, a block. */
typedef struct fused_rows {
    size_t from, to; /* W's bytes, from the first page's start on, the first and the last page among
                        them: multiples of a step. The rest is no more than verified. */
    size_t in_features; /* a multiple of a step */
    size_t done;        /* elements of the first row that lie before `from` */
    const float *x;     /* 64-byte aligned, as are the sums */
    const float *first; /* the first row's partial sums so far */
    float *sums; /* receives those of each row that ends in here, one block after the other */
    float *rest; /* receives those of the row that does not, zeros if there is none; not where
                    `first` lies */
} fused_rows;

#endif
