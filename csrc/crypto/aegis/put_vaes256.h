/* SPDX-License-Identifier: Apache-2.0
 * How the loops in assembler of AEGIS-128X2 and AEGIS-256X2 (run_vaes256.h) store a block: a
 * register of 256 bits, whose name is `v`. */
#ifndef CCMEM_AEGIS_PUT_VAES256_H
#define CCMEM_AEGIS_PUT_VAES256_H

/* clang-format off */
/* v is done with afterwards, x names its low half. */
#define AEGIS_PUT(v, x, to) "vmovdqu " v "," to "\n\t"
#define AEGIS_PUT_AROUND(v, x, to) "vmovntdq " v "," to "\n\t"
#define AEGIS_PUT_AROUND_HALVES(v, x, to)                                                         \
    "vmovntdq " x "," to "\n\tvextracti128 $1," v "," x "\n\tvmovntdq " x ",16+" to "\n\t"
#define AEGIS_PUT_NOWHERE(v, x, to) ""
/* clang-format on */

#endif
