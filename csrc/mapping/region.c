/* SPDX-License-Identifier: Apache-2.0
 * Public mappings (ccmem_region): chooses the mechanism and the size of blocks, and cuts ranges of
 * bytes into blocks. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mapping/fault.h"
#include "mapping/window.h"
#include "platform/vmem.h"
#include "store/store.h"

enum {
    FRAMES = 8,             /* a window has so many, if blocks of the smallest size allow */
    BLOCK_SMALL = 256 << 10 /* without huge pages: a page table entry for each 4 KiB is moved */
};

struct ccmem_region {
    window *window;
    uint64_t nbytes, skip; /* `skip`: where the range begins in its first block */
    size_t block;
    ccmem_fault fault;
};

/* Returns 1 when the system gives no huge pages even on request
 * (Documentation/admin-guide/mm/transhuge.rst). */
static int huge_pages_refused(void) {
    char text[128];
    int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 1;
    text[n] = 0;
    return strstr(text, "[never]") != NULL;
}

/* The largest block of which a window holds some, and that is not much more than all there is. */
static uint64_t choose_block(uint64_t least, uint64_t window, uint64_t nbytes) {
    uint64_t block = huge_pages_refused() ? (uint64_t)BLOCK_SMALL : HUGE_PAGE;
    while (block > least && (window / FRAMES < block || nbytes <= block / 2))
        block /= 2;
    return block;
}

static const fault_ops *ops_of(ccmem_fault fault) {
    switch (fault) {
    case CCMEM_FAULT_UFFD: return &fault_uffd_move;
    case CCMEM_FAULT_UFFD_SIGNAL: return &fault_uffd_signal;
    case CCMEM_FAULT_UFFD_COPY: return &fault_uffd_copy;
    case CCMEM_FAULT_SIGSEGV: return &fault_sigsegv;
    case CCMEM_FAULT_AUTO: break;
    }
    return NULL;
}

/* The mechanisms in the order in which they are tried. */
static const ccmem_fault automatic[] = {CCMEM_FAULT_UFFD_SIGNAL, CCMEM_FAULT_UFFD,
                                        CCMEM_FAULT_UFFD_COPY, CCMEM_FAULT_SIGSEGV};

static ccmem_status try_mechanism(ccmem_region *r, window_options *w, ccmem_fault fault) {
    r->fault = fault;
    w->ops = ops_of(fault);
    return window_new(w, &r->window);
}

static ccmem_status try_mechanisms(ccmem_region *r, window_options *w,
                                   const ccmem_region_options *o) {
    ccmem_status status = CCMEM_ERR_FAULT;
    int threads = 1, number = 0;
    if (o->fault != CCMEM_FAULT_AUTO)
        return try_mechanism(r, w, o->fault);
    if (o->system_calls && fault_uffd_permits_system_calls())
        status = try_mechanism(r, w, CCMEM_FAULT_UFFD);
    for (size_t i = 0; i <= sizeof automatic / sizeof *automatic; i++) {
        if (status == CCMEM_ERR_THREAD) { /* what the caller can mend */
            threads = 0;
            number = errno;
        } else if (status != CCMEM_ERR_FAULT) {
            return status;
        }
        if (i < sizeof automatic / sizeof *automatic)
            status = try_mechanism(r, w, automatic[i]);
    }
    if (threads)
        return status;
    errno = number;
    return CCMEM_ERR_THREAD;
}

ccmem_status ccmem_region_new(ccmem_store *store, uint64_t offset, uint64_t nbytes,
                              const ccmem_region_options *o, ccmem_region **out) {
    if (!store || !nbytes || !o || !o->name || !out ||
        (o->fault != CCMEM_FAULT_AUTO && !ops_of(o->fault)))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_store_check(store);
    if (status != CCMEM_OK)
        return status;
    if (nbytes > ccmem_store_size(store) || offset > ccmem_store_size(store) - nbytes)
        return CCMEM_ERR_RANGE;
    const uint64_t page = store_page_size(store), system_page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t least = page > system_page ? page : system_page;
    const uint64_t block = o->block ? o->block : choose_block(least, o->window, nbytes);
    if (block & (block - 1) || block < least || block > (uint64_t)1 << 40)
        return CCMEM_ERR_ARGUMENT;
    const uint64_t skip = offset % page, blocks = (skip + nbytes + block - 1) / block;
    const uint64_t frames = o->window / block < blocks ? o->window / block : blocks;
    if (frames < CCMEM_WINDOW_BLOCKS && frames < blocks)
        return CCMEM_ERR_ARGUMENT;
    ccmem_region *r = calloc(1, sizeof *r);
    if (!r)
        return CCMEM_ERR_NOMEM;
    r->nbytes = nbytes;
    r->skip = skip;
    r->block = (size_t)block;
    window_options w = {.store = store,
                        .origin = offset - skip,
                        .from = offset,
                        .to = offset + nbytes,
                        .block = (size_t)block,
                        .nframes = (size_t)frames,
                        .writable = o->writable,
                        .read_ahead = o->read_ahead,
                        .name = o->name};
    status = try_mechanisms(r, &w, o);
    if (status != CCMEM_OK) {
        free(r);
        return status;
    }
    *out = r;
    return CCMEM_OK;
}

uint8_t *ccmem_region_data(ccmem_region *r) { return window_data(r->window); }

/* What `call` does with the blocks that hold n bytes from `offset` of the range. */
static ccmem_status with_blocks(ccmem_region *r, uint64_t offset, uint64_t n,
                                ccmem_status (*call)(window *, size_t, size_t)) {
    if (!n || n > r->nbytes || offset > r->nbytes - n)
        return CCMEM_ERR_RANGE;
    uint64_t at = r->skip + offset;
    return call(r->window, (size_t)(at / r->block), (size_t)((at + n - 1) / r->block));
}

ccmem_status ccmem_region_prefault(ccmem_region *r, uint64_t offset, uint64_t n) {
    return with_blocks(r, offset, n, window_prefault);
}

ccmem_status ccmem_region_pin(ccmem_region *r, uint64_t offset, uint64_t n) {
    return with_blocks(r, offset, n, window_pin);
}

ccmem_status ccmem_region_unpin(ccmem_region *r, uint64_t offset, uint64_t n) {
    return with_blocks(r, offset, n, window_unpin);
}

ccmem_status ccmem_region_flush(ccmem_region *r) { return window_flush(r->window); }

ccmem_status ccmem_region_close(ccmem_region *r) { return window_close(r->window); }

ccmem_status ccmem_region_get_stats(ccmem_region *r, ccmem_region_stats *out) {
    ccmem_status status = window_get_stats(r->window, out);
    out->fault = r->fault;
    return status;
}

void ccmem_region_free(ccmem_region *r) {
    if (!r)
        return;
    window_free(r->window);
    free(r);
}
