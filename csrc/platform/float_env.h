/* SPDX-License-Identifier: Apache-2.0
 * The floating-point environment of products: the same results whatever the caller has set. */
#ifndef CCMEM_FLOAT_ENV_H
#define CCMEM_FLOAT_ENV_H

#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>
#endif

typedef unsigned float_env;

/* Sets the default rounding, with subnormal numbers as they are, and returns what was set. */
static inline float_env float_env_default(void) {
#if CCMEM_X86
    enum { MXCSR_DEFAULT = 0x1f80 };
    float_env before = _mm_getcsr();
    _mm_setcsr(MXCSR_DEFAULT);
    return before;
#else
    return 0;
#endif
}

static inline void float_env_restore(float_env before) {
#if CCMEM_X86
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

#endif
