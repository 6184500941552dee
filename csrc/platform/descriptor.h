/* SPDX-License-Identifier: Apache-2.0
 * Descriptors that are known by the file behind them. A program that closes all that it does not
 * know, as daemons do, frees their numbers, and other files get these. */
#ifndef CCMEM_DESCRIPTOR_H
#define CCMEM_DESCRIPTOR_H

#include "ccmem.h"

/* Takes over fd, and notes which file it is. 0 when the system does not say (errno says why); fd is
 * still the caller's then. */
int descriptor_own(ccmem_kept_file *d, int fd);

/* The number; -1 when there is none, or it is another file's now. errno stays as it was. */
int descriptor_number(const ccmem_kept_file *d);

/* Closes it, if it is still that file's; d->fd is -1 afterwards. errno stays as it was. */
void descriptor_close(ccmem_kept_file *d);

#endif
