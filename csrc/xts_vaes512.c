/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 512-bit registers: Intel from Ice Lake-SP. */
#include "cpu.h"

#if CCMEM_X86
#include "xts_vaes512.h"

#include "xts_gen_clmul.h"

#define XTS_OPS xts_vaes512
#include "xts_template.h"

#include "xts_dot.h"
#endif
