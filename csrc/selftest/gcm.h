/* SPDX-License-Identifier: Apache-2.0
 * The part of the self-tests of GCM that is the same for all ciphers. */
#ifndef CCMEM_SELFTEST_GCM_H
#define CCMEM_SELFTEST_GCM_H

#include "crypto/gcm/gcm.h"

/* A published message: sealed, opened, and refused with a bit of its tag changed. 1 when right. */
typedef struct selftest_gcm_vector {
    uint8_t key[32], iv[64], ad[24], plain[64], sealed[64], tag[16];
    size_t key_len, iv_len, ad_len, n;
} selftest_gcm_vector;

int selftest_gcm_message(const gcm_ops *ops, const void *key, const selftest_gcm_vector *v);

/* Pseudo-random pages and messages under an expanded key, against the cipher's portable kernels.
 * CCMEM_OK, CCMEM_ERR_SELFTEST, CCMEM_ERR_NOMEM. */
ccmem_status selftest_gcm_pages(const gcm_ops *ops, const gcm_ops *portable, const void *key);

#endif
