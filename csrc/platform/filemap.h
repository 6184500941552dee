/* SPDX-License-Identifier: Apache-2.0
 * Read-only mappings of parts of files, placed so that the kernel can back them with huge pages. */
#ifndef CCMEM_FILEMAP_H
#define CCMEM_FILEMAP_H

#include "ccmem.h"

/* 1 for an errno by which a file system says that it has no mappings (of this kind), as FUSE with
 * direct I/O does; 0 when something else was wrong. */
int filemap_unsupported(int error);

/* n > 0 bytes of the file `fd` from `offset` on, a multiple of the system's pages; they must lie in
 * the file. All processes share them, core dumps leave them out; pages that the file loses are
 * zeros (platform/lost.h); given back with vmem_unmap() of platform/vmem.h. Where the file system
 * refuses shared mappings this is a private one, and *shared 0: nothing writes to it, so
 * that it differs only in what the file system makes of it. CCMEM_ERR_NOMEM, CCMEM_ERR_IO (errno
 * says why).
 */
ccmem_status filemap_pages(int fd, uint64_t offset, uint64_t n, int *shared, void **out);

#endif
