/* SPDX-License-Identifier: Apache-2.0
 *
 * Faults by userfaultfd(2): the kernel stops a thread that touches an absent block, and a thread of
 * ours is told. Or, where system calls need not fault, it is sent SIGBUS and has the block placed
 * itself: no other thread has to be woken for it, nor it by another. Frames of a huge page are
 * moved in and out by one entry of a page table (UFFDIO_MOVE, Linux 6.8); before, they are copied
 * in by UFFDIO_COPY, and moved out by mremap(2) with MREMAP_DONTUNMAP (Linux 5.7), which like
 * UFFDIO_MOVE leaves no moment in which a write of another thread could be lost.
 *
 * A block that was moved in can be written, and there is no way to have it arrive protected.
 * Protecting it afterwards would leave a moment in which a write goes unseen, so writes are not
 * tracked.
 *
 * A program may close our descriptor with all others that it does not know. If that were the last
 * reference, absent blocks would read as zeros from then on, without a word. So a keeper has
 * another, and makes our calls when the descriptor is gone: slower, but every touch is still
 * answered. */
#include "mapping/fault.h"
#include "mapping/fault_help.h"
#include "mapping/fault_signal.h"
#include "platform/descriptor.h"
#include "platform/keeper.h"
#include "platform/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* For headers older than the kernel; the numbers are those of Linux's
 * include/uapi/linux/userfaultfd.h. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
struct uffdio_move {
    __u64 dst, src, len, mode;
    __s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum {
    MESSAGES = 16,
    AGAIN_MAX = 1 << 20,
    LOOK_MS = 1000, /* how often the thread looks about that no event wakes */
    /* Without a descriptor to wait for it looks again and again, more and more seldom. */
    NAP_NS = 200000,
    NAP_MAX_NS = 10000000
};

typedef struct uffd {
    fault_mechanism m;
    ccmem_kept_file file;    /* of userfaultfd(2) */
    kept kept;               /* the same, out of others' reach */
    ccmem_kept_file stop[2]; /* a pair of sockets: what is sent into the second wakes the thread */
    int ending;              /* atomic; the thread is to end */
    int writable, signals;
    long nap; /* in nanoseconds; of the thread */
    pthread_t thread;
} uffd;

/* ---- the descriptor -------------------------------------------------------------------------- */

/* ioctl(2). Another userfaultfd that got the number would wake the wrong threads without an error.
 * What moves into the wrong one fails, so that where no thread has to be woken it is enough to look
 * then. */
static int command(const uffd *u, unsigned long request, void *arg) {
    if ((u->signals || descriptor_number(&u->file) >= 0) && !ioctl(u->file.fd, request, arg))
        return 0;
    return descriptor_number(&u->file) >= 0 ? -1 : keeper_ioctl(&u->kept, request, arg);
}

/* read(2) of messages. */
static ssize_t receive(const uffd *u, void *to, size_t n) {
    const int fd = descriptor_number(&u->file);
    return fd >= 0 ? read(fd, to, n) : (ssize_t)keeper_read(&u->kept, to, n);
}

/* ---- moving ---------------------------------------------------------------------------------- */

/* Moves n bytes from one registered range to another; *done tells how many before an error. EAGAIN
 * is a change of the address space meanwhile (another thread's mmap(2)), and part of the way done.
 */
static int move(const uffd *u, const uint8_t *to, const uint8_t *from, size_t n, uint64_t mode,
                size_t *done) {
    *done = 0;
    for (int tries = 0; tries < AGAIN_MAX; tries++) {
        struct uffdio_move move = {.dst = (uintptr_t)to + *done,
                                   .src = (uintptr_t)from + *done,
                                   .len = n - *done,
                                   .mode = mode};
        if (!command(u, UFFDIO_MOVE, &move)) {
            *done = n;
            return 1;
        }
        if (move.move > 0)
            *done += (size_t)move.move;
        if (*done == n)
            return 1;
        if (errno != EAGAIN)
            return 0;
    }
    return 0;
}

/* Wakes the threads that wait for n bytes at `p`. It fails only for a range that is not registered;
 * but a thread that is not woken waits for ever. */
static int wake_range(const uffd *u, const uint8_t *p, size_t n) {
    for (int tries = 0;; tries++) {
        struct uffdio_range range = {.start = (uintptr_t)p, .len = n};
        if (!command(u, UFFDIO_WAKE, &range))
            return 1;
        if (!fault_again(tries))
            return 0;
    }
}

/* Whole or not at all: a part that has gone comes back. */
static int move_whole(const uffd *u, uint8_t *to, uint8_t *from, size_t n, uint64_t mode) {
    size_t done, some;
    if (move(u, to, from, n, mode, &done))
        return 1;
    for (size_t back = 0, tries = 0; back < done; back += some, tries++) {
        if (tries && !fault_again((int)tries))
            return -1;
        (void)move(u, from + back, to + back, done - back, 0, &some);
    }
    return !done || wake_range(u, from, done) ? 0 : -1;
}

/* Refuses writes from now on, and wakes the threads that wait. Returns 0 when they are not woken.
 */
static int protect(const uffd *u, const uint8_t *p, size_t n) {
    enum { TRIES = 16 }; /* if all fail, such writes are lost instead */
    for (int tries = 0; tries < TRIES; tries++) {
        struct uffdio_writeprotect range = {.range = {.start = (uintptr_t)p, .len = n},
                                            .mode = UFFDIO_WRITEPROTECT_MODE_WP};
        if (!command(u, UFFDIO_WRITEPROTECT, &range))
            break;
    }
    return u->signals || wake_range(u, p, n);
}

static int place_moved(fault_mechanism *m, size_t block, size_t frame, int writable) {
    const uffd *u = (uffd *)m;
    const fault_space *s = &m->space;
    uint8_t *to = s->base + block * s->block;
    (void)writable; /* the range is, or not */
    int done = move_whole(u, to, s->frames + frame * s->block, s->block,
                          u->writable ? 0 : UFFDIO_MOVE_MODE_DONTWAKE);
    if (done != 1 || u->writable)
        return done;
    return protect(u, to, s->block) ? 1 : -1;
}

static int take_moved(fault_mechanism *m, size_t block, size_t frame, int writable) {
    const fault_space *s = &m->space;
    (void)writable;
    return move_whole((uffd *)m, s->frames + frame * s->block, s->base + block * s->block, s->block,
                      0);
}

/* Leaves the range's mapping where it was, without its pages. */
static int remap(uint8_t *to, uint8_t *from, size_t n) {
    return mremap(from, n, n, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == (void *)to;
}

static int place_copy(fault_mechanism *m, size_t block, size_t frame, int writable) {
    const uffd *u = (uffd *)m;
    const fault_space *s = &m->space;
    uint8_t *from = s->frames + frame * s->block, *to = s->base + block * s->block;
    size_t done = 0;
    (void)writable;
    for (int tries = 0; tries < AGAIN_MAX && done < s->block; tries++) {
        struct uffdio_copy copy = {.dst = (uintptr_t)to + done,
                                   .src = (uintptr_t)from + done,
                                   .len = s->block - done,
                                   .mode = u->writable ? 0 : UFFDIO_COPY_MODE_WP};
        if (!command(u, UFFDIO_COPY, &copy))
            done = s->block;
        else if (copy.copy > 0)
            done += (size_t)copy.copy;
        else if (errno != EAGAIN)
            break;
    }
    if (done < s->block) {
        /* The first pages may have been written since: they come back as they are now. */
        for (int tries = 0; done && !remap(from, to, done); tries++)
            if (!fault_again(tries))
                return -1;
        return 0;
    }
    ccmem_wipe(from, s->block); /* the block is in the clear once */
    return 1;
}

static int take_remapped(fault_mechanism *m, size_t block, size_t frame, int writable) {
    const fault_space *s = &m->space;
    (void)writable;
    return remap(s->frames + frame * s->block, s->base + block * s->block, s->block);
}

static int wake(fault_mechanism *m, size_t block) {
    const fault_space *s = &m->space;
    return wake_range((uffd *)m, s->base + block * s->block, s->block);
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* Answers the faults that are waiting. 0 when there are none, -1 when the descriptor is broken. */
static int answer(uffd *u) {
    struct uffd_msg message[MESSAGES];
    ssize_t n = receive(u, message, sizeof message);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    for (size_t i = 0; i < (size_t)n / sizeof message[0]; i++) {
        const struct uffd_msg *f = &message[i];
        if (f->event != UFFD_EVENT_PAGEFAULT)
            continue;
        size_t offset = (size_t)(f->arg.pagefault.address - (uintptr_t)u->m.space.base);
        int write = (f->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
        /* There is no refusing a touch here: the owner ends the process, or lets it wait for the
         * end. */
        (void)u->m.owner.fault(u->m.owner.self, offset, write);
    }
    return 1;
}

/* Waits until there may be a touch, or the end. A program that closes our descriptors closes the
 * other end of `stop` as well, which is seen here at once. */
static void await_touch(uffd *u) {
    struct pollfd wait[2] = {{.fd = descriptor_number(&u->file), .events = POLLIN},
                             {.fd = descriptor_number(&u->stop[0]), .events = POLLIN}};
    if (wait[0].fd >= 0 && wait[1].fd >= 0 && descriptor_number(&u->stop[1]) >= 0 &&
        poll(wait, 2, LOOK_MS) >= 0)
        return;
    const struct timespec nap = {.tv_nsec = u->nap};
    (void)nanosleep(&nap, NULL);
    u->nap = u->nap < NAP_MAX_NS / 2 ? 2 * u->nap : NAP_MAX_NS;
}

static void *serve(void *arg) {
    uffd *u = arg;
    const int alone = !u->m.helper;
    u->nap = NAP_NS;
    for (int refused = 0; !__atomic_load_n(&u->ending, __ATOMIC_ACQUIRE);) {
        int found = answer(u);
        if (found < 0) {
            if (!fault_again(refused++)) {
                u->m.owner.broken(u->m.owner.self);
                break;
            }
            continue;
        }
        refused = 0;
        if (found)
            u->nap = NAP_NS;
        if (!found && !u->m.owner.idle(u->m.owner.self, alone))
            await_touch(u);
    }
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* A descriptor that offers `features`; system calls fault too, if this process may have that. */
static int open_descriptor(uint64_t features, int user_only, int *system_calls) {
    for (int way = user_only ? 2 : 0; way < 3; way++) {
        int fd = -1, device;
        if (way == 0) {
            fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        } else if (way == 1) {
            device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
            if (device >= 0) {
                fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
                close(device);
            }
        } else {
            fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        }
        if (fd < 0)
            continue;
        struct uffdio_api api = {.api = UFFD_API, .features = features};
        if (!ioctl(fd, UFFDIO_API, &api)) {
            *system_calls = way < 2;
            return fd;
        }
        close(fd);
        return -1; /* of the kernel, not of the way */
    }
    return -1;
}

int fault_uffd_permits_system_calls(void) {
    int permitted = 0, fd = open_descriptor(0, 0, &permitted);
    if (fd >= 0)
        close(fd);
    return fd >= 0 && permitted;
}

static int watch(const uffd *u, uint8_t *p, size_t n, int writes) {
    struct uffdio_register range = {.range = {.start = (uintptr_t)p, .len = n},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING |
                                            (writes ? UFFDIO_REGISTER_MODE_WP : 0)};
    return !command(u, UFFDIO_REGISTER, &range);
}

typedef enum way { MOVING, COPYING, SIGNALLING } way;

static ccmem_status start(uffd *u, way way) {
    const fault_space *s = &u->m.space;
    /* UFFDIO_MOVE wants both ends registered. */
    if (!watch(u, s->base, s->nblocks * s->block, !u->writable) ||
        (way != COPYING && !watch(u, s->frames, s->nframes * s->block, 0)))
        return CCMEM_ERR_FAULT;
    if (way == SIGNALLING && !fault_signal_enter(&u->m))
        return CCMEM_ERR_FAULT;
    fault_help(&u->m);
    if (way == SIGNALLING || signals_thread(serve, u, &u->thread))
        return CCMEM_OK;
    int number = errno;
    fault_stop_help(&u->m);
    errno = number;
    return CCMEM_ERR_THREAD;
}

/* Two sockets, and not eventfd(2): of anonymous files one could not be told from another's. */
static int open_stop(uffd *u) {
    int ends[2], good = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return 0;
    for (int i = 0; i < 2; i++) {
        int owned = descriptor_own(&u->stop[i], ends[i]);
        if (!owned) {
            int number = errno;
            (void)close(ends[i]);
            errno = number;
        }
        good += owned;
    }
    return good == 2;
}

static ccmem_status open_descriptors(uffd *u, way way) {
    static const uint64_t features[] = {
        [MOVING] = UFFD_FEATURE_MOVE | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
        [COPYING] = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
        [SIGNALLING] = UFFD_FEATURE_MOVE | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_SIGBUS};
    int fd = open_descriptor(features[way], way == SIGNALLING, &u->m.system_calls);
    if (fd < 0)
        return CCMEM_ERR_FAULT;
    if (!descriptor_own(&u->file, fd)) {
        int number = errno;
        (void)close(fd);
        errno = number;
        return CCMEM_ERR_FAULT;
    }
    if (way != SIGNALLING && !open_stop(u))
        return CCMEM_ERR_FAULT;
    return keeper_hold(&u->kept, fd);
}

static void close_descriptors(uffd *u) {
    descriptor_close(&u->file);
    descriptor_close(&u->stop[0]);
    descriptor_close(&u->stop[1]);
    keeper_drop(&u->kept);
}

static ccmem_status open_uffd(const fault_owner *owner, size_t block, size_t nblocks,
                              size_t nframes, int writable, way way, fault_mechanism **out) {
    uffd *u = calloc(1, sizeof *u);
    if (!u)
        return CCMEM_ERR_NOMEM;
    u->m.owner = *owner;
    u->writable = writable;
    u->signals = way == SIGNALLING;
    u->file.fd = u->stop[0].fd = u->stop[1].fd = -1;
    ccmem_status status = open_descriptors(u, way);
    if (status == CCMEM_OK)
        status = fault_map(&u->m.space, block, nblocks, nframes, 0);
    if (status == CCMEM_OK) {
        status = start(u, way);
        if (status != CCMEM_OK) {
            fault_unmap(&u->m.space);
            fault_release(&u->m.space);
        }
    }
    if (status != CCMEM_OK) {
        close_descriptors(u);
        free(u);
        return status;
    }
    *out = &u->m;
    return CCMEM_OK;
}

static ccmem_status open_moving(const fault_owner *owner, size_t block, size_t nblocks,
                                size_t nframes, int writable, fault_mechanism **out) {
    return open_uffd(owner, block, nblocks, nframes, writable, MOVING, out);
}

static ccmem_status open_copying(const fault_owner *owner, size_t block, size_t nblocks,
                                 size_t nframes, int writable, fault_mechanism **out) {
    return open_uffd(owner, block, nblocks, nframes, writable, COPYING, out);
}

static ccmem_status open_signalling(const fault_owner *owner, size_t block, size_t nblocks,
                                    size_t nframes, int writable, fault_mechanism **out) {
    return open_uffd(owner, block, nblocks, nframes, writable, SIGNALLING, out);
}

static void finish(uffd *u) {
    fault_unmap(&u->m.space);
    /* A thread that waits for what is gone gets SIGSEGV; a child may have a copy of the descriptor,
     * so that closing it alone would not wake the thread. */
    (void)wake_range(u, u->m.space.base, u->m.space.nblocks * u->m.space.block);
    close_descriptors(u);
    free(u);
}

static void close_serving(fault_mechanism *m) {
    uffd *u = (uffd *)m;
    __atomic_store_n(&u->ending, 1, __ATOMIC_RELEASE);
    int fd = descriptor_number(&u->stop[1]); /* -1: it does not wait for long then */
    for (int tries = 0; fd >= 0 && send(fd, "", 1, MSG_NOSIGNAL) < 0 && fault_again(tries); tries++)
        ;
    pthread_join(u->thread, NULL);
    fault_stop_help(m);
    finish(u);
}

static void close_signalling(fault_mechanism *m) {
    fault_signal_leave(m);
    fault_stop_help(m);
    finish((uffd *)m);
}

const fault_ops fault_uffd_move = {.open = open_moving,
                                   .place = place_moved,
                                   .take = take_moved,
                                   .wake = wake,
                                   .poke = fault_poke,
                                   .close = close_serving};
const fault_ops fault_uffd_copy = {.open = open_copying,
                                   .place = place_copy,
                                   .take = take_remapped,
                                   .wake = wake,
                                   .poke = fault_poke,
                                   .close = close_serving};
const fault_ops fault_uffd_signal = {.open = open_signalling,
                                     .place = place_moved,
                                     .take = take_moved,
                                     .wake = wake,
                                     .poke = fault_poke,
                                     .close = close_signalling,
                                     .waits = 1};
