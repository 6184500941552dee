/* SPDX-License-Identifier: Apache-2.0
 * AES blocks with AES-NI: every x86 processor with AES instructions, in the tiers for wider
 * registers too, since what comes here is a few blocks. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "crypto/aes/aes.h"
#include "memory/secret.h"

/* SSE2 comes with x86-64; AES-NI is the one extension used. */
#define TARGET __attribute__((target("aes")))
#include "simd/v128.h"

#define AES_OPS aes_aesni
#include "crypto/aes/template.h"
#endif
