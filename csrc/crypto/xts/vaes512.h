/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 512-bit registers: what crypto/xts/template.h and crypto/xts/fused.h ask for,
 * but for the tweak generator. Included by the tier's two files. */
#include "crypto/xts/xts.h"
#include "memory/secret.h"

#define TARGET __attribute__((target("aes,pclmul," TARGET_AVX512 ",vaes,vpclmulqdq")))
#include "simd/v512.h"

#include "crypto/gf128/clmul.h"

#define XTS_FUSED fused
static const xts_fused_function fused[4];
#define FUSED_TARGET TARGET
#define FUSED_LANES F_LANES
