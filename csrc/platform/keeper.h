/* SPDX-License-Identifier: Apache-2.0
 * References to open files that nobody in this process can close: a thread with a descriptor table
 * of its own, in which nothing else is, holds them, and makes calls on them for others. One thread
 * serves the process; it ends with the last reference. */
#ifndef CCMEM_KEEPER_H
#define CCMEM_KEEPER_H

#include <stddef.h>

#include "ccmem.h"

typedef struct kept {
    struct keeper *by; /* NULL: nothing is kept */
    int number;        /* in that thread's table */
} kept;

/* Keeps the file behind fd, too, which stays the caller's. CCMEM_ERR_THREAD when there is no thread
 * to be had, CCMEM_ERR_FAULT for other refusals (errno says why). */
ccmem_status keeper_hold(kept *k, int fd);

/* Gives the reference back; nothing if there is none. errno stays as it was. */
void keeper_drop(kept *k);

/* ioctl(2) and read(2), made by that thread, which must not have to wait in them. They allocate
 * nothing and may be called by the handler of a signal that an access raised. */
int keeper_ioctl(const kept *k, unsigned long request, void *arg);
long keeper_read(const kept *k, void *to, size_t n);

#endif
