/* SPDX-License-Identifier: Apache-2.0
 * Memory for plaintext that is handed out: see ccmem_plain_alloc() in ccmem.h. */
#ifndef CCMEM_PLAIN_H
#define CCMEM_PLAIN_H

#include "ccmem.h"

enum {
    /* Wiped blocks kept for reuse, in bytes: the kernel zeroes fresh pages one fault at a time,
     * which costs more than the decryption that follows. */
    PLAIN_KEEP_BYTES = 256 << 20
};

#endif
