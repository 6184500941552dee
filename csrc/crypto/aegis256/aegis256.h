/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-256 and AEGIS-256X2 (RFC 10032, draft-irtf-cfrg-aegis-aead): the kernels of each tier, as
 * those of AEGIS-128L and AEGIS-128X2 (crypto/aegis/aegis.h). A block is 16 bytes a lane. Keys and
 * nonces of messages have 32 bytes; the nonce of a page is the 16 bytes that it is given, and 16
 * zeros. */
#ifndef CCMEM_AEGIS256_H
#define CCMEM_AEGIS256_H

#include "crypto/aegis/aegis.h"

enum { AEGIS256_KEY_SIZE = 32, AEGIS256_NONCE_SIZE = 32 };

extern const aegis_ops aegis256_portable, aegis256_aesni, aegis256_avx2, aegis256_vaes256,
    aegis256_vaes512;

#endif
