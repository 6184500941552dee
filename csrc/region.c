/* SPDX-License-Identifier: Apache-2.0
 * The public side of windows: which mechanism, how large the blocks, bytes into blocks. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "store.h"
#include "vmem.h"
#include "window.h"

enum {
    FRAMES = 4,              /* a window has so many, if blocks of the smallest size allow */
    FRAMES_MIN = 2,          /* an instruction may touch two blocks */
    BLOCK_SMALL = 256 << 10  /* without huge pages: a page table entry for each 4 KiB is moved */
};

struct ccmem_region {
    window *window;
    uint64_t nbytes, origin, from; /* `from`: where the range begins in the store */
    size_t block, nframes;
    ccmem_fault fault;
};

/* 1 when the system gives no huge pages even on request (Documentation/admin-guide/mm/transhuge.rst). */
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
static size_t choose_block(size_t least, uint64_t window, uint64_t nbytes) {
    size_t block = huge_pages_refused() ? BLOCK_SMALL : HUGE_PAGE;
    while (block > least && (window / FRAMES < block || nbytes <= block / 2))
        block /= 2;
    return block;
}

static const fault_ops *ops_of(ccmem_fault fault) {
    switch (fault) {
    case CCMEM_FAULT_MOVE: return &fault_uffd_move;
    case CCMEM_FAULT_SIGNAL: return &fault_uffd_signal;
    case CCMEM_FAULT_COPY: return &fault_uffd_copy;
    case CCMEM_FAULT_SIGSEGV: return &fault_sigsegv;
    }
    return NULL;
}

ccmem_status ccmem_region_new(ccmem_store *store, uint64_t offset, uint64_t nbytes, int writable,
                              uint64_t window, uint64_t block, ccmem_fault fault, const char *name,
                              ccmem_region **out) {
    if (!store || !nbytes || !name || !out || !ops_of(fault))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_store_check(store);
    if (status != CCMEM_OK)
        return status;
    if (nbytes > ccmem_store_size(store) || offset > ccmem_store_size(store) - nbytes)
        return CCMEM_ERR_RANGE;
    if (writable && (status = store_check_writable(store)) != CCMEM_OK)
        return status;
    const size_t page = store_page_size(store), system_page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t least = page > system_page ? page : system_page;
    if (!block)
        block = choose_block(least, window, nbytes);
    if (block & (block - 1) || block < least || block > ((uint64_t)1 << 40) ||
        window / FRAMES_MIN < block)
        return CCMEM_ERR_ARGUMENT;
    ccmem_region *r = calloc(1, sizeof *r);
    if (!r)
        return CCMEM_ERR_NOMEM;
    r->nbytes = nbytes;
    r->from = offset;
    r->origin = offset - offset % page;
    r->block = (size_t)block;
    uint64_t blocks = (offset + nbytes - r->origin + block - 1) / block;
    r->nframes = (size_t)(window / block < blocks ? window / block : blocks);
    r->fault = fault;
    status = window_new(store, r->origin, offset, offset + nbytes, writable, r->block, r->nframes,
                        ops_of(fault), name, &r->window);
    if (status != CCMEM_OK) {
        free(r);
        return status;
    }
    *out = r;
    return CCMEM_OK;
}

void ccmem_region_get_info(const ccmem_region *r, ccmem_region_info *out) {
    *out = (ccmem_region_info){.data = window_data(r->window),
                               .block = r->block,
                               .frames = r->nframes,
                               .fault = r->fault,
                               .system_calls = window_system_calls(r->window)};
}

/* The blocks that hold n > 0 bytes from `offset` of the range. */
static ccmem_status blocks_of(const ccmem_region *r, uint64_t offset, uint64_t n, size_t *first,
                              size_t *last) {
    if (!n || n > r->nbytes || offset > r->nbytes - n)
        return CCMEM_ERR_RANGE;
    uint64_t at = r->from - r->origin + offset;
    *first = (size_t)(at / r->block);
    *last = (size_t)((at + n - 1) / r->block);
    return CCMEM_OK;
}

ccmem_status ccmem_region_pin(ccmem_region *r, uint64_t offset, uint64_t n) {
    size_t first, last;
    ccmem_status status = blocks_of(r, offset, n, &first, &last);
    return status == CCMEM_OK ? window_pin(r->window, first, last) : status;
}

ccmem_status ccmem_region_unpin(ccmem_region *r, uint64_t offset, uint64_t n) {
    size_t first, last;
    ccmem_status status = blocks_of(r, offset, n, &first, &last);
    return status == CCMEM_OK ? window_unpin(r->window, first, last) : status;
}

ccmem_status ccmem_region_flush(ccmem_region *r) { return window_flush(r->window); }

ccmem_status ccmem_region_close(ccmem_region *r) { return window_close(r->window); }

void ccmem_region_free(ccmem_region *r) {
    if (!r)
        return;
    window_free(r->window);
    free(r);
}
