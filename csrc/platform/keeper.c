/* SPDX-License-Identifier: Apache-2.0
 *
 * A file ends with the last reference to it, and what it did ends, too: without its userfaultfd(2)
 * an absent block of a mapping is ordinary memory, and reads as zeros. A program that closes every
 * number in its table (os.closerange(), daemons) cannot reach another table.
 *
 * The thread leaves the table that all others share (CLOSE_RANGE_UNSHARE, Linux 5.9, older than
 * UFFDIO_MOVE), and closes its copies at once, so that no connection of the program stays open
 * because of it. Locks of fcntl(2) belong to a table, so closing a copy drops none of the
 * program's. Files come through a pair of sockets, the only way from one table into another. If the
 * program closes our end of that, the next file goes to a new thread, and the old one ends with
 * what it holds.
 *
 * Requests go through memory, which cannot be closed. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/keeper.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "platform/descriptor.h"
#include "platform/fork.h"
#include "platform/signals.h"

/* For headers older than the kernel; the numbers are those of Linux's own headers. */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif

typedef enum request { HOLD, DROP, IOCTL, READ, END } request;

typedef struct keeper {
    pthread_mutex_t turn; /* one request at a time */
    sem_t asked, answered;
    pthread_t thread;
    ccmem_kept_file here; /* the end of the pair that files are sent into */
    int there;            /* the thread's */
    unsigned held;        /* under the lock of all */
    struct {
        request what;
        int number;
        unsigned long code;
        void *memory;
        size_t n;
        long result;
        int error;
    } now; /* the request, and its answer */
} keeper;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static keeper *current; /* takes files; others only hold what they have */

/* ---- the thread ------------------------------------------------------------------------------ */

static void wait_for(sem_t *what) {
    while (sem_wait(what) && errno == EINTR)
        ;
}

/* Of the shared table only what lies below `there` is copied when all above it is to be closed. */
static int leave_table(int there) {
    if (syscall(SYS_close_range, (unsigned)there + 1, ~0U, CLOSE_RANGE_UNSHARE))
        return 0;
    return !there || !syscall(SYS_close_range, 0, (unsigned)there - 1, 0);
}

/* The file that was sent, or -1. */
static int receive(int from) {
    char byte;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    int fd = -1;
    if (recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
        return -1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
    else
        errno = EMFILE; /* how the kernel tells of that */
    return fd;
}

static void *serve(void *arg) {
    keeper *k = arg;
    for (int ready = 0;; sem_post(&k->answered)) {
        wait_for(&k->asked);
        switch (k->now.what) {
        case HOLD:
            ready = ready || leave_table(k->there);
            k->now.result = ready ? receive(k->there) : -1;
            break;
        case DROP: k->now.result = close(k->now.number); break;
        case IOCTL: k->now.result = ioctl(k->now.number, k->now.code, k->now.memory); break;
        case READ: k->now.result = read(k->now.number, k->now.memory, k->now.n); break;
        case END: return NULL; /* its table goes with it */
        }
        k->now.error = errno;
    }
}

static long ask(keeper *k, request what, int number, unsigned long code, void *memory, size_t n) {
    pthread_mutex_lock(&k->turn);
    k->now.what = what;
    k->now.number = number;
    k->now.code = code;
    k->now.memory = memory;
    k->now.n = n;
    (void)sem_post(&k->asked);
    wait_for(&k->answered);
    const long result = k->now.result;
    const int error = k->now.error;
    pthread_mutex_unlock(&k->turn);
    if (result < 0)
        errno = error;
    return result;
}

/* ---- life ------------------------------------------------------------------------------------ */

static void delete (keeper *k) {
    descriptor_close(&k->here);
    sem_destroy(&k->answered);
    sem_destroy(&k->asked);
    pthread_mutex_destroy(&k->turn);
    free(k);
}

/* One without files, whose thread waits; the thread's end of the pair is still open in the table of
 * all. */
static ccmem_status start(keeper **out) {
    int ends[2], error;
    keeper *k = calloc(1, sizeof *k);
    if (!k)
        return CCMEM_ERR_NOMEM;
    ccmem_status status = CCMEM_ERR_FAULT;
    k->here.fd = -1;
    if ((error = pthread_mutex_init(&k->turn, NULL))) {
        errno = error;
        goto no_turn;
    }
    if (sem_init(&k->asked, 0, 0))
        goto no_asked;
    if (sem_init(&k->answered, 0, 0))
        goto no_answered;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        goto no_pair;
    k->there = ends[1];
    if (!descriptor_own(&k->here, ends[0])) {
        error = errno;
        (void)close(ends[0]);
    } else if (!signals_thread(serve, k, &k->thread)) {
        error = errno;
        status = CCMEM_ERR_THREAD;
    } else {
        *out = k;
        return CCMEM_OK;
    }
    (void)close(ends[1]);
    errno = error;
no_pair:
    error = errno;
    sem_destroy(&k->answered);
    errno = error;
no_answered:
    error = errno;
    sem_destroy(&k->asked);
    errno = error;
no_asked:
    error = errno;
    pthread_mutex_destroy(&k->turn);
    errno = error;
no_turn:
    descriptor_close(&k->here);
    free(k);
    return status;
}

static int send_file(const keeper *k, int fd) {
    char byte = 0;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof fd)];
    } control = {.space = {0}};
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    return sendmsg(k->here.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}

/* With the lock held: no more files for it, and if it holds none its end. */
static void retire(keeper *k) {
    const int number = errno;
    if (k == current)
        current = NULL;
    descriptor_close(&k->here); /* what was sent and not taken in goes, too */
    if (!k->held) {
        pthread_mutex_lock(&k->turn);
        k->now.what = END;
        (void)sem_post(&k->asked);
        pthread_mutex_unlock(&k->turn);
        pthread_join(k->thread, NULL);
        delete (k);
    }
    errno = number;
}

/* A child has no such thread, and its table is a copy. */
static void in_child(void) {
    pthread_mutex_init(&lock, NULL);
    if (current)
        descriptor_close(&current->here);
    current = NULL;
}

static void begin(void) { fork_handle(FORK_KEEPER, (fork_handlers){.in_child = in_child}); }

ccmem_status keeper_hold(kept *out, int fd) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ccmem_status status = CCMEM_OK;
    pthread_once(&once, begin);
    pthread_mutex_lock(&lock);
    if (current && descriptor_number(&current->here) < 0)
        current = NULL; /* it holds files, or it would have ended */
    const int fresh = !current;
    if (fresh)
        status = start(&current);
    if (status == CCMEM_OK) {
        keeper *k = current;
        int number = send_file(k, fd) ? (int)ask(k, HOLD, 0, 0, NULL, 0) : -1;
        if (fresh) /* the thread has a table of its own by now */
            (void)close(k->there);
        if (number >= 0) {
            k->held++;
            *out = (kept){k, number};
        } else {
            retire(k);
            status = CCMEM_ERR_FAULT;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}

void keeper_drop(kept *k) {
    const int number = errno;
    if (k->by) {
        pthread_mutex_lock(&lock);
        (void)ask(k->by, DROP, k->number, 0, NULL, 0);
        if (!--k->by->held)
            retire(k->by);
        pthread_mutex_unlock(&lock);
        k->by = NULL;
    }
    errno = number;
}

int keeper_ioctl(const kept *k, unsigned long request, void *arg) {
    return (int)ask(k->by, IOCTL, k->number, request, arg, 0);
}

long keeper_read(const kept *k, void *to, size_t n) {
    return ask(k->by, READ, k->number, 0, to, n);
}
