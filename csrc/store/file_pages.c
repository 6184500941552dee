/* SPDX-License-Identifier: Apache-2.0
 *
 * The pages of a file: mapped, so that all processes share one copy of them in the page cache, or
 * read into memory. The first store of a file maps all of its pages, which touches none of them and
 * takes as long for a large file as for a small one. Where that is refused (a limit of addresses),
 * and for pages that were found lost in that mapping, a store gets a mapping of its own. What is
 * read lies in one reservation of addresses, a store's behind the other's, for the same reason: a
 * file may have more stores than a process can have mappings. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "store/file_pages.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "platform/filemap.h"
#include "platform/lost.h"
#include "platform/threads.h"
#include "platform/vmem.h"

enum { GRAIN_BYTES = 4 << 20 }; /* the least that is worth another thread */

static uint64_t unit(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static uint64_t rounded(uint64_t n, uint64_t to) { return (n + to - 1) & ~(to - 1); }

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

/* ---- pages that are read --------------------------------------------------------------------- */

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

static ccmem_status read_into(uint8_t *p, int fd, uint64_t offset, uint64_t size) {
    reading r = {.fd = fd, .offset = offset, .to = p};
    parallel_for(size, GRAIN_BYTES, read_piece, &r);
    if (r.status == CCMEM_OK && mprotect(p, rounded(size, unit()), PROT_READ))
        stop(&r, CCMEM_ERR_NOMEM, errno);
    errno = r.error;
    return (ccmem_status)r.status;
}

/* Addresses for n bytes in `room`, which is made where there is none or it is used up. NULL: the
 * system has none. With the lock held. */
static uint8_t *place(file_pages *f, uint64_t n) {
    const uint64_t align = n >= HUGE_PAGE ? HUGE_PAGE : unit();
    uint64_t at = f->room ? rounded(f->used, align) : 0;
    if (!f->room || at > f->room->size || n > f->room->size - at) {
        /* Some more than the pages take, for the gaps between large ones. */
        const uint64_t all = f->end - f->begin;
        const uint64_t size = all > n ? all + all / 32 : n;
        ccmem_mapping *room;
        void *p;
        if (vmem_reserve(size, &p) != CCMEM_OK)
            return NULL;
        if (mapping_new(p, size, NULL, &room) != CCMEM_OK) {
            vmem_unmap(p, size);
            return NULL;
        }
        ccmem_mapping_release(f->room);
        f->room = room;
        at = 0;
    }
    f->used = at + n;
    return f->room->data + at;
}

/* Memory for size bytes of pages. */
static ccmem_status new_memory(file_pages *f, uint64_t size, ccmem_mapping **out) {
    pthread_mutex_lock(&f->lock);
    void *p = place(f, rounded(size, unit()));
    ccmem_status status = p ? mapping_new(p, size, f->room, out) : CCMEM_OK;
    pthread_mutex_unlock(&f->lock);
    if (p) {
        if (status == CCMEM_OK && (status = vmem_commit(p, size)) != CCMEM_OK)
            ccmem_mapping_release(*out);
        else if (status == CCMEM_OK)
            (*out)->reserved = 1;
        return status;
    }
    status = vmem_map_pages(size, &p);
    if (status == CCMEM_OK && (status = mapping_new(p, size, NULL, out)) != CCMEM_OK)
        vmem_unmap(p, size);
    return status;
}

static ccmem_status read_pages(file_pages *f, int fd, uint64_t offset, uint64_t size,
                               ccmem_mapping **out) {
    ccmem_status status = new_memory(f, size, out);
    if (status != CCMEM_OK)
        return status;
    status = read_into((*out)->data, fd, offset, size);
    if (status != CCMEM_OK) {
        const int error = errno;
        ccmem_mapping_release(*out);
        errno = error;
    }
    return status;
}

/* ---- pages that are mapped ------------------------------------------------------------------- */

static ccmem_status map_range(int fd, uint64_t offset, uint64_t n, ccmem_file_way *way,
                              ccmem_mapping **out) {
    int shared = 1;
    void *p;
    ccmem_status status = filemap_pages(fd, offset, n, &shared, &p);
    if (status != CCMEM_OK)
        return status;
    *way = shared ? CCMEM_FILE_SHARED : CCMEM_FILE_PRIVATE;
    status = mapping_new(p, n, NULL, out);
    if (status != CCMEM_OK)
        vmem_unmap(p, n);
    return status;
}

/* The mapping of all pages with a reference for the caller; NULL: there is none. *no_mappings: the
 * file system has none at all. */
static ccmem_mapping *whole_of(file_pages *f, int fd, int *no_mappings) {
    pthread_mutex_lock(&f->lock);
    if (!f->asked) {
        f->asked = 1;
        if (map_range(fd, f->begin, f->end - f->begin, &f->way, &f->whole) == CCMEM_ERR_IO &&
            filemap_unsupported(errno))
            __atomic_store_n(&f->read, 1, __ATOMIC_RELAXED);
    }
    if (f->whole)
        __atomic_fetch_add(&f->whole->refs, 1, __ATOMIC_RELAXED);
    *no_mappings = __atomic_load_n(&f->read, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&f->lock);
    return f->whole;
}

static ccmem_status map_pages(file_pages *f, int fd, uint64_t offset, uint64_t size,
                              ccmem_mapping **mapping, uint8_t **ct, ccmem_file_way *way) {
    int no_mappings;
    ccmem_mapping *whole = whole_of(f, fd, &no_mappings);
    if (whole) {
        *ct = whole->data + (offset - f->begin);
        *way = f->way;
        if (!lost_path(*ct, size)) {
            *mapping = whole;
            return CCMEM_OK;
        }
        ccmem_mapping_release(whole);
    }
    /* Where the system's pages are larger than the file's, not every offset can be mapped. */
    if (no_mappings || offset % unit()) {
        errno = ENODEV;
        return CCMEM_ERR_IO;
    }
    ccmem_status status = map_range(fd, offset, size, way, mapping);
    if (status == CCMEM_OK)
        *ct = (*mapping)->data;
    return status;
}

/* ---- either ---------------------------------------------------------------------------------- */

ccmem_status file_pages_begin(file_pages *f, uint64_t begin, uint64_t end, int read) {
    *f = (file_pages){.begin = begin & ~(unit() - 1), .end = end, .read = read};
    return pthread_mutex_init(&f->lock, NULL) ? CCMEM_ERR_NOMEM : CCMEM_OK;
}

ccmem_status file_pages_get(file_pages *f, int fd, uint64_t offset, uint64_t n,
                            ccmem_mapping **mapping, uint8_t **ct, ccmem_file_way *way) {
    ccmem_status status = check_length(fd, offset, n);
    if (status != CCMEM_OK)
        return status;
    const int read = __atomic_load_n(&f->read, __ATOMIC_RELAXED);
    *way = read ? CCMEM_FILE_READ : CCMEM_FILE_SHARED;
    *mapping = NULL;
    if (!n)
        return CCMEM_OK;
    if (!read) {
        status = map_pages(f, fd, offset, n, mapping, ct, way);
        if (status != CCMEM_ERR_IO || !filemap_unsupported(errno))
            return status;
    }
    *way = CCMEM_FILE_READ;
    ccmem_mapping *own;
    status = read_pages(f, fd, offset, n, &own);
    if (status == CCMEM_OK) {
        *mapping = own;
        *ct = own->data;
    }
    return status;
}

void file_pages_end(file_pages *f) {
    ccmem_mapping_release(f->whole);
    ccmem_mapping_release(f->room);
    pthread_mutex_destroy(&f->lock);
}
