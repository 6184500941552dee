/* SPDX-License-Identifier: Apache-2.0
 * How long a window tries again what the kernel, or another thread, stands in the way of. */
#ifndef CCMEM_WINDOW_PATIENCE_H
#define CCMEM_WINDOW_PATIENCE_H

#include <stdint.h>
#include <time.h>

enum {
    BUSY_WAIT_NS = 200000, /* between two tries */
    BUSY_WAITS = 2500      /* at least */
};

/* What is held longer than this will not come back. Tries are counted as well, since a process that
 * was stopped finds that all the time has gone by. */
static const uint64_t BUSY_NS = 10000000000;

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void wait_ns(long ns) {
    struct timespec t = {.tv_nsec = ns};
    nanosleep(&t, NULL);
}

/* Returns 1 while one more try, the number `tries` from 0 on, may help. */
static inline int patient(int tries, uint64_t since) {
    return tries < BUSY_WAITS || now_ns() - since < BUSY_NS;
}

#endif
