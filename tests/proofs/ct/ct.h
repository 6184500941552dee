/* SPDX-License-Identifier: Apache-2.0
 * Secrets for memcheck. A byte marked undefined stays so through every copy and all arithmetic, bit
 * by bit, and memcheck reports the first branch, address or system call that depends on one (the
 * idea is A. Langley's ctgrind, 2010). What this cannot see: instructions whose own time depends on
 * their operands, such as division, and processors that do not do what the program says. */
#ifndef CCMEM_CT_H
#define CCMEM_CT_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <valgrind/memcheck.h>

/* The exit status of a program whose tier this processor, or the one that Valgrind shows, lacks. */
enum { NOT_ON_THIS_PROCESSOR = 77 };

/* From here on a secret. */
static inline void make_secret(const void *p, size_t n) { (void)VALGRIND_MAKE_MEM_UNDEFINED(p, n); }

/* From here on known to everyone: ciphertext, tags; or about to be checked by the test. */
static inline void make_public(const void *p, size_t n) { (void)VALGRIND_MAKE_MEM_DEFINED(p, n); }

/* Ends the program with a line on stderr when a test went wrong in another way than by a leak. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* 1 when memcheck takes something in each of the n bytes for secret. Asked of every output: where
 * it is not so, the secret was lost on the way, and silence would prove nothing. */
static inline int is_secret(const void *p, size_t n) {
    const uint8_t *bytes = p;
    uint8_t bits;

    for (size_t i = 0; i < n; i++)
        if (VALGRIND_GET_VBITS(bytes + i, &bits, 1) != 1 || !bits)
            return 0;
    return 1;
}

/* Different bytes for different seeds. */
static inline void fill(void *p, size_t n, unsigned seed) {
    uint8_t *bytes = p;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u; /* Knuth, volume 2, 3.3.4, table 1 */
        bytes[i] = (uint8_t)(seed >> 24);
    }
}

static inline void fill_secret(void *p, size_t n, unsigned seed) {
    fill(p, n, seed);
    make_secret(p, n);
}

/* Whether n bytes are what fill() makes of the seed. */
static inline int is_filled(const uint8_t *p, size_t n, unsigned seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        if (p[i] != (uint8_t)(seed >> 24))
            return 0;
    }
    return 1;
}

static inline int is_zero(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return 0;
    return 1;
}

#endif
