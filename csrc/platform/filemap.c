/* SPDX-License-Identifier: Apache-2.0
 *
 * The page cache keeps a file in huge pages where the file system can (XFS, ext4 from Linux 6.16
 * on). A process sees one as such only if an address is the file's offset plus a multiple of the
 * huge page, and if all of the huge page lies in one mapping. Parts of a file, most of which are no
 * multiple of it, are therefore mapped at the distances that they have in the file: the kernel
 * joins the mappings of neighbours to one. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/filemap.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "platform/lost.h"
#include "platform/vmem.h"

#ifndef MAP_FIXED_NOREPLACE /* glibc 2.27; an older kernel takes the address for a hint */
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* Where this thread mapped a part of a file last, and found room for the rest of it: the byte
 * `begin` has the address `address`. Only a place to try, since all of it may be in use by now. */
typedef struct row {
    dev_t device;
    ino_t inode;
    uint64_t begin, end;
    uint8_t *address;
} row;

static _Thread_local row last;

static void *map(void *address, size_t size, int flags, int fd, uint64_t offset) {
    void *p = mmap(address, size, PROT_READ, flags, fd, (off_t)offset);
    return p == MAP_FAILED ? NULL : p;
}

static void *map_in_row(const struct stat *file, int fd, uint64_t offset, size_t size, int kind) {
    if (last.device != file->st_dev || last.inode != file->st_ino || offset < last.begin ||
        offset > last.end || size > last.end - offset)
        return NULL;
    return map(last.address + (offset - last.begin), size, kind | MAP_FIXED_NOREPLACE, fd, offset);
}

/* Leaves free what lies behind the part, for the others. */
static void *map_in_new_row(const struct stat *file, int fd, uint64_t offset, size_t size,
                            int kind) {
    uint64_t end = (uint64_t)file->st_size;
    if (end < offset + size || end - offset < HUGE_PAGE)
        return NULL;
    /* Some more, since what a store keeps beside its pages will lie there, too: the kernel fills
     * the highest gap. */
    uint64_t length = (end - offset + (end - offset) / 32) & ~(uint64_t)(HUGE_PAGE - 1);
    if (length > SIZE_MAX / 2)
        return NULL;
    size_t room = (size_t)length + 3 * HUGE_PAGE;
    uint8_t *p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    size_t skip = (size_t)((offset - (uintptr_t)p) & (HUGE_PAGE - 1));
    if (!map(p + skip, size, kind | MAP_FIXED, fd, offset) || (skip && munmap(p, skip))) {
        munmap(p, room);
        return NULL;
    }
    p += skip; /* what lay before may already be another thread's */
    if (munmap(p + size, room - skip - size)) {
        munmap(p, room - skip);
        return NULL;
    }
    last = (row){file->st_dev, file->st_ino, offset, end, p};
    return p;
}

/* `kind` is MAP_SHARED or MAP_PRIVATE. NULL: errno says why. */
static void *map_pages(const struct stat *file, int fd, uint64_t offset, size_t size, int kind) {
    void *p = map_in_row(file, fd, offset, size, kind);
    if (!p)
        p = map_in_new_row(file, fd, offset, size, kind);
    return p ? p : map(NULL, size, kind, fd, offset);
}

int filemap_unsupported(int error) {
    return error == ENODEV || error == EINVAL || error == EOPNOTSUPP || error == ENOSYS ||
           error == EPERM || error == ENXIO;
}

ccmem_status filemap_pages(int fd, uint64_t offset, uint64_t n, int *shared, void **out) {
    size_t unit = (size_t)sysconf(_SC_PAGESIZE), size = ((size_t)n + unit - 1) & ~(unit - 1);
    struct stat file;
    if (fstat(fd, &file))
        return CCMEM_ERR_IO;
    void *p = map_pages(&file, fd, offset, size, MAP_SHARED);
    *shared = p != NULL;
    if (!p && filemap_unsupported(errno))
        p = map_pages(&file, fd, offset, size, MAP_PRIVATE);
    if (!p)
        return errno == ENOMEM || errno == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_IO;
    if (madvise(p, size, MADV_DONTDUMP)) {
        int error = errno;
        munmap(p, size);
        errno = error;
        return error == ENOMEM || error == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_IO;
    }
    /* What is not in the page cache yet is read into huge pages; a refusal costs speed only. */
    (void)madvise(p, size, MADV_HUGEPAGE);
    ccmem_status status = lost_watch(p, size, fd);
    if (status != CCMEM_OK) {
        int error = errno;
        munmap(p, size);
        errno = error;
        return status;
    }
    *out = p;
    return CCMEM_OK;
}
