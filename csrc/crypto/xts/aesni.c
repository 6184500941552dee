/* SPDX-License-Identifier: Apache-2.0
 * XTS with AES-NI on 128-bit registers: Intel from Westmere to Skylake-X, AMD from Bulldozer to
 * Zen 2, and any newer processor under a system that does not save ymm state. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "crypto/xts/xts.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul,sse4.2")))
#include "simd/v128.h"

#include "crypto/gf128/clmul.h"
#include "crypto/xts/gen_doubling.h"

#define vnext(t) vdouble(t)
#define XTS_OPS xts_aesni
#include "crypto/xts/template.h"
#endif
