/* SPDX-License-Identifier: Apache-2.0
 * Puts a directory in the place of another in one step. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ccmem.h"

/* Of linux/fs.h, which some C libraries do not let be included beside their own headers. */
enum { EXCHANGE = 1 << 1 };

int ccmem_exchange(const char *one, const char *other) {
#ifdef SYS_renameat2
    return syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, EXCHANGE) ? errno : 0;
#else
    (void)one, (void)other;
    return ENOSYS;
#endif
}
