/* SPDX-License-Identifier: Apache-2.0
 *
 * A read-only store over pages in a file: mapped, so that all processes share one copy of them in
 * the page cache, or read into memory of their own. A process that can write the file can change
 * mapped pages at any moment; each byte of a page is loaded once, and what was loaded is what the
 * tag is checked for. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pages/page_key.h"
#include "platform/filemap.h"
#include "platform/threads.h"
#include "platform/vmem.h"
#include "store/store.h"

/* How this thread came by the pages of the last store that it made. */
static _Thread_local ccmem_file_way last_way;

enum { GRAIN_BYTES = 4 << 20 }; /* the least that is worth another thread */

static ccmem_status failed(int error) {
    errno = error;
    return error == ENOMEM || error == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_IO;
}

/* CCMEM_ERR_RANGE when the file ends before offset + size: what is mapped there could not be
 * touched. */
static ccmem_status check_length(int fd, uint64_t offset, uint64_t size) {
    struct stat file;
    if (fstat(fd, &file))
        return failed(errno);
    uint64_t length = file.st_size > 0 ? (uint64_t)file.st_size : 0;
    return size > length || offset > length - size ? CCMEM_ERR_RANGE : CCMEM_OK;
}

typedef struct reading {
    int fd;
    uint64_t offset;
    uint8_t *to;
    int status; /* atomic, as is the next: of one thread that failed */
    int error;
} reading;

static void stop(reading *r, ccmem_status status, int error) {
    __atomic_store_n(&r->error, error, __ATOMIC_RELAXED);
    __atomic_store_n(&r->status, (int)status, __ATOMIC_RELAXED);
}

static void read_piece(void *arg, uint64_t begin, uint64_t end) {
    reading *r = arg;
    while (begin < end && __atomic_load_n(&r->status, __ATOMIC_RELAXED) == CCMEM_OK) {
        size_t most = end - begin < GRAIN_BYTES ? end - begin : GRAIN_BYTES;
        ssize_t got = pread(r->fd, r->to + begin, most, (off_t)(r->offset + begin));
        if (got > 0)
            begin += (uint64_t)got;
        else if (!got)
            stop(r, CCMEM_ERR_RANGE, 0);
        else if (errno != EINTR)
            stop(r, CCMEM_ERR_IO, errno);
    }
}

static ccmem_status read_pages(int fd, uint64_t offset, uint64_t size, void **out) {
    void *p;
    ccmem_status status = vmem_map_pages(size, &p);
    if (status != CCMEM_OK)
        return status;
    reading r = {.fd = fd, .offset = offset, .to = p};
    parallel_for(size, GRAIN_BYTES, read_piece, &r);
    if (r.status == CCMEM_OK && mprotect(p, size, PROT_READ))
        stop(&r, CCMEM_ERR_NOMEM, errno);
    if (r.status != CCMEM_OK) {
        vmem_unmap(p, size);
        errno = r.error;
        return (ccmem_status)r.status;
    }
    *out = p;
    return CCMEM_OK;
}

/* Maps the pages, or reads them where that is asked for or cannot be otherwise. */
static ccmem_status get_pages(int fd, uint64_t offset, uint64_t size, int read, void **out) {
    if (!read) {
        int shared = 1;
        ccmem_status status = filemap_pages(fd, offset, size, &shared, out);
        last_way = shared ? CCMEM_FILE_SHARED : CCMEM_FILE_PRIVATE;
        if (status != CCMEM_ERR_IO || !filemap_unsupported(errno))
            return status;
    }
    last_way = CCMEM_FILE_READ;
    return read_pages(fd, offset, size, out);
}

ccmem_file_way ccmem_store_map_way(void) { return last_way; }

ccmem_status ccmem_store_map(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                             uint64_t nbytes, uint32_t page_size, int fd, uint64_t offset,
                             int anonymous, const uint64_t *versions, const uint8_t *tags,
                             ccmem_store **out) {
    void *pages = NULL;
    if (!key || !id || !out || !ccmem_cipher_authenticated(cipher) ||
        !page_size_allowed(page_size) || offset % CCMEM_PAGE_SIZE_MIN ||
        (nbytes && (!versions || !tags)))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status != CCMEM_OK)
        return status;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    uint64_t size = (nbytes + page_size - 1) & ~(uint64_t)(page_size - 1);
    status = check_length(fd, offset, size);
    if (status != CCMEM_OK)
        return status;
    /* Where the system's pages are larger than the file's, not every offset can be mapped. */
    int mappable = offset % (uint64_t)sysconf(_SC_PAGESIZE) == 0;
    last_way = anonymous ? CCMEM_FILE_READ : CCMEM_FILE_SHARED;
    if (size)
        status = get_pages(fd, offset, size, anonymous || !mappable, &pages);
    if (status != CCMEM_OK)
        return status;
    status = store_over(key, cipher, id, nbytes, page_size, pages, versions, tags, out);
    if (status != CCMEM_OK)
        vmem_unmap(pages, size);
    return status;
}
