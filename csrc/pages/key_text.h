/* SPDX-License-Identifier: Apache-2.0
 * Keys as text, decoded in place, in time that does not depend on them. */
#ifndef CCMEM_KEY_TEXT_H
#define CCMEM_KEY_TEXT_H

#include "ccmem.h"

enum {
    HEX_DIGITS = 2 * CCMEM_ROOT_KEY_SIZE,
    BASE64_DIGITS = 43, /* of 32 bytes, and one "=" or none */
    BOM_SIZE = 3,       /* U+FEFF in UTF-8, which some editors begin a file with */
    BLANKS_MAX = 16,    /* spaces and ends of lines after the digits */
    KEY_TEXT_MAX = BOM_SIZE + HEX_DIGITS + BLANKS_MAX
};

/* 64 hexadecimal digits, with up to BLANKS_MAX blanks after them and with or without a byte order
 * mark before, become the first 32 of the n bytes at `raw`. CCMEM_ERR_KEYFILE, and then the bytes
 * are as they were. */
ccmem_status key_text_hex(uint8_t *raw, size_t n);

/* The same for 32 bytes in base64 (RFC 4648), of either alphabet, with or without padding. */
ccmem_status key_text_base64(uint8_t *raw, size_t n);

#endif
