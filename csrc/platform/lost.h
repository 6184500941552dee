/* SPDX-License-Identifier: Apache-2.0
 * Mapped pages of files that cannot be had any more: the file was cut short, or its file system
 * failed. The system answers a touch of one with SIGBUS. */
#ifndef CCMEM_LOST_H
#define CCMEM_LOST_H

#include <stddef.h>

#include "ccmem.h"

/* Watches n > 0 bytes at p, a mapping of the open file `fd`. From now on a touch by code of this
 * module finds a page of zeros where the file's cannot be had, so that its tag does not match; a
 * touch by any other code goes to the previous handler of SIGBUS, after a message that names the
 * file.
 * CCMEM_ERR_NOMEM; CCMEM_ERR_IO when the system refuses a handler (errno says why). */
ccmem_status lost_watch(const void *p, size_t n, int fd);

/* Undoes it for the mapping that begins at p, before that is unmapped; nothing if there is none. */
void lost_unwatch(const void *p);

/* Before pages of files are touched: from now on a thread looks for handlers that others set. Where
 * there is none to be had, each call looks. Not before: a process that only loads files, and forks
 * others that read them, has no use for a thread. Costs one load when there is nothing to be done.
 */
static inline void lost_guard(void);

/* The path of the file when a page within [p, p + n) was found lost, else NULL. Once it was told it
 * stays valid. A page stays lost in this mapping though the file may be mended. */
const char *lost_path(const void *p, size_t n);

extern int lost_unguarded; /* atomic; 1: there are such mappings, and no thread that looks */
void lost_guard_now(void);

static inline void lost_guard(void) {
    if (__builtin_expect(__atomic_load_n(&lost_unguarded, __ATOMIC_RELAXED), 0))
        lost_guard_now();
}

#endif
