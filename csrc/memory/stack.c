/* SPDX-License-Identifier: Apache-2.0
 *
 * What other libraries leave on the stacks of threads. MKL packs matrices there (48 KiB in each of
 * two threads on a Sapphire Rapids), and glibc's M_PERTURB overwrites the heap only. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <alloca.h>
#include <pthread.h>
#include <stdint.h>

#include "ccmem.h"
#include "platform/threads.h"

enum {
    REACH = 256 << 10, /* bytes below the caller: some five times what was seen */
    MARGIN = 16 << 10  /* left at the stack's end, for the call itself and a signal's handler */
};

/* The lowest address of this thread's stack; the highest there is where it is not known, so that
 * nothing lies above it. glibc reads /proc/self/maps for the first thread, hence once a thread. */
static uintptr_t lowest(void) {
    static _Thread_local uintptr_t known;
    pthread_attr_t attributes;
    void *address = NULL;
    size_t size = 0;
    if (known)
        return known;
    known = UINTPTR_MAX;
    if (pthread_getattr_np(pthread_self(), &attributes))
        return known;
    if (!pthread_attr_getstack(&attributes, &address, &size) && address)
        known = (uintptr_t)address;
    (void)pthread_attr_destroy(&attributes);
    return known;
}

__attribute__((noinline)) static void burn(size_t n) { ccmem_wipe(alloca(n), n); }

static void wipe_mine(void *unused) {
    (void)unused;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0), end = lowest();
    if (here <= end || here - end <= MARGIN)
        return;
    size_t room = here - end - MARGIN;
    burn(room < REACH ? room : REACH);
}

void ccmem_wipe_stacks(void *team, uint32_t threads) {
    if (team && threads > 1)
        ((gomp_parallel)team)(wipe_mine, NULL, threads, 0);
    else
        wipe_mine(NULL);
}
