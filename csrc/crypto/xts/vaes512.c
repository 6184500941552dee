/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 512-bit registers: Intel from Ice Lake-SP. */
#include "platform/cpu.h"

#if CCMEM_X86
#include "crypto/xts/vaes512.h"

#include "crypto/xts/gen_clmul.h"

#define XTS_OPS xts_vaes512
#include "crypto/xts/template.h"

#include "crypto/xts/fused.h"
#endif
