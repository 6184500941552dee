/* SPDX-License-Identifier: Apache-2.0
 * Secret memory: slots for keys and round keys that no dump, child or swap file sees; wiping and
 * comparing. memfd_secret(2) where the kernel has it, else mlock + MADV_DONTDUMP, always
 * MADV_DONTFORK. */
#ifndef CCMEM_SECRET_H
#define CCMEM_SECRET_H

#include "ccmem.h"

/* On a function that holds secrets: it returns with the registers it used set to zero. Without
 * this, plaintext or a round key left in a vector register reaches the stack of the function that
 * saves registers next, such as the dynamic linker at the first call of a lazily bound function.
 * GCC 11, Clang 15; older compilers leave the registers as they are. */
#if defined(__has_attribute)
#if __has_attribute(zero_call_used_regs)
#define CLEAR_REGISTERS __attribute__((zero_call_used_regs("used")))
#endif
#endif
#ifndef CLEAR_REGISTERS
#define CLEAR_REGISTERS
#endif

/* Marks a variable, computed from secrets, as one that everybody may know, for the proof of
 * constant time (`make ct`, tests/proofs/ct), which reports every branch and address that depends
 * on a secret. Each use says why. Elsewhere it is nothing. */
#ifdef CCMEM_CT
#include <valgrind/memcheck.h>
#define DECLASSIFY(variable) (void)VALGRIND_MAKE_MEM_DEFINED(&(variable), sizeof(variable))
#else
#define DECLASSIFY(variable) (void)0
#endif

/* Overwrites 1 KiB of stack below the caller's frame, where functions that it called have spilled
 * registers, or saved the caller's before they used them. */
void burn_stack(void);

/* The same with 6 KiB, behind products and attention: their kernels keep up to 5 KiB there, of
 * W, x, K, V and their sums. Products of Q5_K with four rows of x need most (AVX2). */
void burn_stack_of_kernels(void);

/* Copies n bytes without the C library, whose copy would leave them in vector registers. */
static inline void copy_secret(void *out, const void *in, size_t n) {
#if defined(__x86_64__)
    __asm__ volatile("rep movsb" : "+D"(out), "+S"(in), "+c"(n) : : "memory");
#else
    volatile uint8_t *to = out;
    const uint8_t *from = in;
    for (size_t i = 0; i < n; i++)
        to[i] = from[i];
#endif
}

/* A zeroed slot of at least n bytes (n <= SECRET_SLOT_MAX), 64-byte aligned, in memory of at least
 * level `require` (CCMEM_SECRET_MLOCK when the caller does not mind), or of just that which
 * CCMEM_SECRET_MLOCK_ONLY says. *level, when not NULL,
 * receives the level reached. CCMEM_ERR_SECRETMEM, _MEMLOCK, _NOMEM, _ARGUMENT. */
enum { SECRET_SLOT_MAX = 2048 };
ccmem_status secret_alloc(size_t n, ccmem_secret_level require, void **out,
                          ccmem_secret_level *level);

/* Size bytes of zeros in a mapping of their own, of memory as above. On success *out is the
 * caller's until secret_unmap(). For what must not be changed from outside and need not be hidden,
 * and is too large for a slot. CCMEM_ERR_SECRETMEM, _MEMLOCK, _NOMEM. */
ccmem_status secret_map(size_t size, ccmem_secret_level require, void **out,
                        ccmem_secret_level *level);

/* Returns such a mapping. NULL is allowed. Not in a forked child, as secret_free(). */
void secret_unmap(void *p, size_t size);

/* Wipes the slot and returns it. NULL is allowed. Must not be called for a slot that came from the
 * parent of a fork: the memory is not there (callers ask fork_alien() first). */
void secret_free(void *slot);

#endif
