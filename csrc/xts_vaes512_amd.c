/* SPDX-License-Identifier: Apache-2.0
 * XTS with VAES on 512-bit registers: AMD from Zen 4. */
#include "cpu.h"

#if CCMEM_X86
#include "xts_vaes512.h"

#include "xts_gen_integer.h"

#define XTS_OPS xts_vaes512_amd
#include "xts_template.h"

#include "xts_dot.h"
#endif
