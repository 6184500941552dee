/* SPDX-License-Identifier: Apache-2.0
 *
 * The loops of kernels/probe.h, for a width of registers. */
#include <string.h>

#include "kernels/probe.h"

/* Loads whose values an empty assembler statement asks for, so that the compiler keeps them all; no
 * addition waits for another. */
#define LOAD(name, attribute, type, constraint)                                                    \
    attribute static void name(const uint8_t *memory, uint64_t n) {                                \
        enum { LOADS = 256 / sizeof(type) };                                                       \
        for (uint64_t at = 0; at < n; at += 256) {                                                 \
            _Pragma("GCC unroll 32") for (int i = 0; i < LOADS; i++) {                             \
                type value;                                                                        \
                memcpy(&value, memory + at + (size_t)i * sizeof value, sizeof value);              \
                __asm__ volatile("" : : constraint(value));                                        \
            }                                                                                      \
        }                                                                                          \
    }

/* Eight registers, one AES round each per turn; named one by one, because compilers may keep an
 * array in memory, which makes a "ceiling" of the store buffer. The empty assembler statement makes
 * every register an output that the compiler knows nothing about: without it, equal chains are
 * merged and the "ceiling" comes out several times too high. */
#define AES_ROUNDS(name, tgt, type, constraint, set1, aesenc)                                      \
    __attribute__((target(tgt), noinline)) static void name(uint64_t turns) {                      \
        type k = set1(0x3c), a = set1(1), b = set1(2), c = set1(3), d = set1(4), e = set1(5),      \
             f = set1(6), g = set1(7), h = set1(8);                                                \
        for (uint64_t i = 0; i < turns; i++) {                                                     \
            a = aesenc(a, k), b = aesenc(b, k), c = aesenc(c, k), d = aesenc(d, k);                \
            e = aesenc(e, k), f = aesenc(f, k), g = aesenc(g, k), h = aesenc(h, k);                \
            __asm__ volatile(""                                                                    \
                             : "+" constraint(a), "+" constraint(b), "+" constraint(c),            \
                               "+" constraint(d), "+" constraint(e), "+" constraint(f),            \
                               "+" constraint(g), "+" constraint(h));                              \
        }                                                                                          \
    }
