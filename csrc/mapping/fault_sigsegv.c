/* SPDX-License-Identifier: Apache-2.0
 *
 * Faults by SIGSEGV, where userfaultfd(2) is forbidden, as in many containers: absent blocks are
 * protected against every access, and the handler, in the thread that touched one, has it placed.
 * The kernel's own accesses for a system call end in EFAULT. Frames are moved by mremap(2), which
 * changes a block's pages at once for every thread; with MREMAP_DONTUNMAP (Linux 5.7) no hole is
 * left that another mmap(2) could take. A block that is placed for reading is protected against
 * writing, so writes are tracked. */
#include "mapping/fault.h"
#include "mapping/fault_help.h"
#include "mapping/fault_signal.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* ---- moving ---------------------------------------------------------------------------------- */

static uint8_t *block_at(const fault_mechanism *m, size_t block) {
    return m->space.base + block * m->space.block;
}

static uint8_t *frame_at(const fault_mechanism *m, size_t frame) {
    return m->space.frames + frame * m->space.block;
}

static int remap(uint8_t *to, uint8_t *from, size_t n) {
    return mremap(from, n, n, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == (void *)to;
}

static int place(fault_mechanism *m, size_t block, size_t frame, int writable) {
    const size_t n = m->space.block;
    if (!writable && mprotect(frame_at(m, frame), n, PROT_READ))
        return 0;
    if (remap(block_at(m, block), frame_at(m, frame), n))
        return 1;
    return fault_protect(frame_at(m, frame), n, PROT_READ | PROT_WRITE) ? 0 : -1;
}

static int take(fault_mechanism *m, size_t block, size_t frame, int writable) {
    const size_t n = m->space.block;
    const int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (mprotect(block_at(m, block), n, PROT_NONE))
        return 0;
    if (!remap(frame_at(m, frame), block_at(m, block), n))
        return fault_protect(block_at(m, block), n, access) ? 0 : -1;
    /* It is the frame's now, and of no use to anybody without this. */
    return fault_protect(frame_at(m, frame), n, PROT_READ | PROT_WRITE) ? 1 : -1;
}

static int allow(fault_mechanism *m, size_t block) {
    return fault_protect(block_at(m, block), m->space.block, PROT_READ | PROT_WRITE);
}

/* No thread waits: the one that touches a block places it. */
static int wake(fault_mechanism *m, size_t block) {
    (void)m;
    (void)block;
    return 1;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Returns 1 if this kernel moves pages and leaves the mapping. */
static int can_move(const fault_mechanism *m) {
    const size_t n = m->space.block;
    uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return 0;
    void *to = mremap(p, n, n, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    if (to != MAP_FAILED)
        munmap(to, n);
    munmap(p, n);
    return to != MAP_FAILED;
}

static ccmem_status open_sigsegv(const fault_owner *owner, size_t block, size_t nblocks,
                                 size_t nframes, int writable, fault_mechanism **out) {
    (void)writable; /* each block says */
    fault_mechanism *m = calloc(1, sizeof *m);
    if (!m)
        return CCMEM_ERR_NOMEM;
    m->owner = *owner;
    ccmem_status status = fault_map(&m->space, block, nblocks, nframes, 1);
    if (status != CCMEM_OK) {
        free(m);
        return status;
    }
    if (!can_move(m) || !fault_signal_enter(m)) {
        fault_unmap(&m->space);
        fault_release(&m->space);
        free(m);
        return CCMEM_ERR_FAULT;
    }
    fault_help(m);
    *out = m;
    return CCMEM_OK;
}

static void close_sigsegv(fault_mechanism *m) {
    fault_signal_leave(m);
    fault_stop_help(m);
    fault_unmap(&m->space);
    free(m);
}

const fault_ops fault_sigsegv = {.open = open_sigsegv,
                                 .place = place,
                                 .take = take,
                                 .allow = allow,
                                 .wake = wake,
                                 .poke = fault_poke,
                                 .close = close_sigsegv,
                                 .tracks = 1,
                                 .waits = 1};
