/* SPDX-License-Identifier: Apache-2.0
 *
 * Faults by SIGSEGV, where userfaultfd(2) is forbidden, as in many containers: absent blocks are protected
 * against every access, and the handler, in the thread that touched one, has it placed. The kernel's own
 * accesses for a system call end in EFAULT. Frames are moved by mremap(2), which changes a block's pages
 * at once for every thread; with MREMAP_DONTUNMAP (Linux 5.7) no hole is left that another mmap(2) could
 * take. A block that is placed for reading is protected against writing, so writes are tracked.
 *
 * The handler runs on the stack of its thread, not on an alternate one: decryption needs some 20 KiB,
 * and alternate stacks are often smaller. It takes the owner's lock, which no thread holds while it
 * touches a range, and calls nothing that allocates memory. Signals that the handler has no block for go
 * to whoever handled them before. */
#include "fault.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "cpu.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum { RANGES_MAX = 1024 };

/* The ranges of this process, which the handler searches without a lock. */
static fault_mechanism *ranges[RANGES_MAX]; /* atomic */
static size_t ranges_used;                  /* atomic; places that ever held one */
static unsigned searching;                  /* atomic; handlers that may hold a range */

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before; /* what we replaced */

/* ---- the handler ----------------------------------------------------------------------------- */

static void pass_on(int number, siginfo_t *info, void *context) {
    if ((before.sa_flags & SA_SIGINFO) && before.sa_sigaction) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        /* The access is repeated, and ends the process; an ignored fault does so, too (signal(7)). */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(number, &standard, NULL);
    }
}

static int is_write(const void *context) {
#if CCMEM_X86
    enum { PF_WRITE = 2 }; /* bit 1 of a page fault's error code: Intel SDM, volume 3, 4.7 */
    const ucontext_t *c = context;
    return (c->uc_mcontext.gregs[REG_ERR] & PF_WRITE) != 0;
#else
    (void)context;
    return 1;
#endif
}

static void on_fault(int number, siginfo_t *info, void *context) {
    int saved = errno, done = 0;
    uintptr_t address = (uintptr_t)info->si_addr;
    __atomic_fetch_add(&searching, 1, __ATOMIC_SEQ_CST);
    size_t used = __atomic_load_n(&ranges_used, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < used && !done && info->si_code > 0; i++) {
        fault_mechanism *m = __atomic_load_n(&ranges[i], __ATOMIC_SEQ_CST);
        if (!m || address - (uintptr_t)m->space.base >= m->space.nblocks * m->space.block)
            continue;
        done = m->owner.fault(m->owner.self, address - (uintptr_t)m->space.base, is_write(context));
    }
    __atomic_fetch_sub(&searching, 1, __ATOMIC_SEQ_CST);
    if (!done)
        pass_on(number, info, context);
    errno = saved;
}

/* A child has none of the ranges, and another thread may have been in the handler. */
static void after_fork(void) {
    for (size_t i = 0; i < RANGES_MAX; i++)
        ranges[i] = NULL;
    ranges_used = 0;
    searching = 0;
    pthread_mutex_init(&installing, NULL);
}

static void register_after_fork(void) { (void)pthread_atfork(NULL, NULL, after_fork); }

/* Again when somebody has put a handler in front of ours since: it would see every first touch as the
 * end of the program. */
static int install(void) {
    struct sigaction now, ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&ours.sa_mask);
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_after_fork);
    int good = !sigaction(SIGSEGV, NULL, &now);
    if (good && !((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault)) {
        before = now;
        good = !sigaction(SIGSEGV, &ours, NULL);
    }
    return good;
}

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
    (void)mprotect(frame_at(m, frame), n, PROT_READ | PROT_WRITE);
    return 0;
}

static int take(fault_mechanism *m, size_t block, size_t frame) {
    const size_t n = m->space.block;
    if (mprotect(block_at(m, block), n, PROT_NONE))
        return 0;
    if (!remap(frame_at(m, frame), block_at(m, block), n)) {
        (void)mprotect(block_at(m, block), n, PROT_READ);
        return 0;
    }
    /* It is the frame's now, and of no use to anybody if this fails. */
    return !mprotect(frame_at(m, frame), n, PROT_READ | PROT_WRITE);
}

static int allow(fault_mechanism *m, size_t block) {
    return !mprotect(block_at(m, block), m->space.block, PROT_READ | PROT_WRITE);
}

static void wake(fault_mechanism *m, size_t block) {
    (void)m;
    (void)block;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Whether this kernel moves pages and leaves the mapping. */
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

static int enter(fault_mechanism *m) {
    for (size_t i = 0; i < RANGES_MAX; i++)
        if (!ranges[i]) {
            __atomic_store_n(&ranges[i], m, __ATOMIC_SEQ_CST);
            if (i >= ranges_used)
                __atomic_store_n(&ranges_used, i + 1, __ATOMIC_RELEASE);
            return 1;
        }
    return 0;
}

static void leave(const fault_mechanism *m) {
    pthread_mutex_lock(&installing);
    for (size_t i = 0; i < ranges_used; i++)
        if (ranges[i] == m)
            __atomic_store_n(&ranges[i], NULL, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&installing);
    while (__atomic_load_n(&searching, __ATOMIC_SEQ_CST))
        sched_yield();
}

static ccmem_status open_sigsegv(const fault_owner *owner, size_t block, size_t nblocks,
                                 size_t nframes, fault_mechanism **out) {
    fault_mechanism *m = calloc(1, sizeof *m);
    if (!m)
        return CCMEM_ERR_NOMEM;
    m->owner = *owner;
    ccmem_status status = fault_map(&m->space, block, nblocks, nframes, 1);
    if (status != CCMEM_OK) {
        free(m);
        return status;
    }
    pthread_mutex_lock(&installing);
    if (!can_move(m) || !install())
        status = CCMEM_ERR_FAULT;
    else if (!enter(m))
        status = CCMEM_ERR_NOMEM;
    pthread_mutex_unlock(&installing);
    if (status != CCMEM_OK) {
        fault_unmap(&m->space);
        fault_release(&m->space);
        free(m);
        return status;
    }
    *out = m;
    return CCMEM_OK;
}

static void close_sigsegv(fault_mechanism *m) {
    leave(m);
    fault_unmap(&m->space);
    free(m);
}

const fault_ops fault_sigsegv = {.open = open_sigsegv,
                                 .place = place,
                                 .take = take,
                                 .allow = allow,
                                 .wake = wake,
                                 .close = close_sigsegv,
                                 .tracks = 1};
