/* SPDX-License-Identifier: Apache-2.0
 * Mechanisms: a range of addresses that holds nothing until it is touched, and frames whose memory
 * can be placed there and taken back. A mechanism knows addresses; its owner knows what belongs
 * there. */
#ifndef CCMEM_FAULT_H
#define CCMEM_FAULT_H

#include <stddef.h>

#include "ccmem.h"

/* The range and the frames. Block b of the range begins at base + b * block, frame f at
 * frames + f * block; all frames can be read and written but those that are placed. */
typedef struct fault_space {
    uint8_t *base, *frames;
    size_t block; /* bytes, a power of two, whole system pages */
    size_t nblocks, nframes;
} fault_space;

/* The owner of a mechanism, which is asked about every touch of a block that is not placed. */
typedef struct fault_owner {
    /* Places the block that byte `offset` of the range lies in, before it returns if `waits` is 1.
     * Returns 0 if the access is not allowed; a mechanism by signals then passes the signal to the
     * previous handler. */
    int (*fault)(void *owner, size_t offset, int write);
    /* Does a piece of the work that may be done before the next fault; returns 0 when there is
     * none. Called by threads of the mechanism, several at once. With `spare` 0 only while a touch
     * waits for a block that some other thread is opening. */
    int (*idle)(void *owner, int spare);
    /* Hears that the mechanism is broken and answers no more touches. Returns only where the owner
     * has no more use of it. */
    void (*broken)(void *owner);
    void *self;
} fault_owner;

typedef struct fault_mechanism fault_mechanism;

/* Calls of place(), take() and allow() never overlap; the owner sees to that. */
typedef struct fault_ops {
    /* Maps the range and the frames, zeros, and from now on asks `owner`. Where the range is not
     * `writable`, writes to a placed block are asked about, too. CCMEM_ERR_NOMEM, _SECRETMEM;
     * CCMEM_ERR_FAULT when the system refuses this mechanism (errno says why), CCMEM_ERR_THREAD
     * when it refuses the thread that this one needs. */
    ccmem_status (*open)(const fault_owner *owner, size_t block, size_t nblocks, size_t nframes,
                         int writable, fault_mechanism **out);
    /* Puts a frame's memory where the block belongs, at once for every thread, and wakes the
     * threads that wait for it. Without `writable` for reading only; but if `tracks` is 0, a thread
     * that does not wait may write in the moment before that is so. Returns 0 when the system
     * cannot do that now, and nothing has changed; -1 when it would not undo a part either, for
     * some seconds. */
    int (*place)(fault_mechanism *m, size_t block, size_t frame, int writable);
    /* The reverse, at once for every thread: what was written before it is in the frame, and a
     * touch of the block after it faults. `writable`: whether it can be written where it is.
     * Returns 0 when the system holds on to the memory, as for input or output that is under way;
     * nothing has changed then. -1 as above. */
    int (*take)(fault_mechanism *m, size_t block, size_t frame, int writable);
    /* Lets a placed block be written; only where `tracks` is 1. Returns 0 when the system refuses
     * for some seconds. */
    int (*allow)(fault_mechanism *m, size_t block);
    /* Wakes threads that wait for a block which is placed. Returns 0 when the system refuses for
     * some seconds. */
    int (*wake)(fault_mechanism *m, size_t block);
    /* Tells the mechanism's threads that there is work for owner->idle(). */
    void (*poke)(fault_mechanism *m);
    /* Ends the mechanism and gives the frames back, of which none is placed any more. The range
     * stays reserved, and a touch of it raises SIGSEGV. Not from owner->fault() or ->idle(). */
    void (*close)(fault_mechanism *m);
    int tracks; /* 1: no write to a block that is placed for reading goes unnoticed */
    int waits;  /* 1: owner->fault() is called by the thread that touched the block, by a signal's
                   handler */
} fault_ops;

/* What all mechanisms have, first in each one's own struct. */
struct fault_mechanism {
    fault_space space;
    fault_owner owner;
    int system_calls;            /* as in ccmem_region_info */
    struct fault_helper *helper; /* see mapping/fault_help.h; or NULL */
    struct span *span;           /* see mapping/fault_signal.h; or NULL */
};

/* Returns 1 when this process may have faults of system calls answered, too (CCMEM_FAULT_UFFD). */
int fault_uffd_permits_system_calls(void);

extern const fault_ops fault_uffd_move, fault_uffd_copy, fault_uffd_signal, fault_sigsegv;

/* Maps range and frames, neither dumped nor inherited, the range without access if `closed`.
 * CCMEM_ERR_NOMEM; CCMEM_ERR_SECRETMEM when the system will not promise that. */
ccmem_status fault_map(fault_space *space, size_t block, size_t nblocks, size_t nframes,
                       int closed);

/* Takes the contents of the range away for good, and unmaps the frames. */
void fault_unmap(fault_space *space);

/* A system call that the kernel refused may succeed in a moment, and what must not be left half
 * done is tried again so often, with a pause each time: some 4 seconds. */
enum { FAULT_TRIES = 20000 };

/* Waits for 0.2 ms before one more try; returns 0 when it was one too many, or time is short. */
int fault_again(int tries);

/* mprotect(2), tried again. */
int fault_protect(uint8_t *p, size_t n, int access);

/* The process is about to end: nothing is tried again. */
void fault_hurry(void);

/* After close(): gives the range back. */
void fault_release(fault_space *space);

/* Reserves the range in a forked child, which has not inherited it: an array may still point there,
 * and nothing else must come to lie there. */
void fault_reserve_in_child(const fault_space *space);

#endif
