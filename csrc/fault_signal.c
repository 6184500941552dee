/* SPDX-License-Identifier: Apache-2.0
 *
 * The handler runs in the thread that touched an absent block, on that thread's stack and not on an
 * alternate one: decryption needs some 20 KiB, and alternate stacks are often smaller. It takes the owner's
 * lock, which no thread holds while it touches a range, and calls nothing that allocates memory. Signals
 * that no owner has a block for go to whoever handled them before. */
#include "fault_signal.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include "cpu.h"

enum {
    RANGES_MAX = 1024,
    LEVELS = 8 /* times that others' handlers can come between ours */
};

/* The ranges of this process, which the handler searches without a lock. */
static struct {
    fault_mechanism *m;    /* atomic; NULL: nothing is here. Set last and cleared first. */
    uintptr_t base, nbytes; /* atomic */
    unsigned users;        /* atomic; handlers that may be in the owner, of this range alone: others may
                            * be busy for ever */
} ranges[RANGES_MAX];
static size_t ranges_used; /* atomic; places that ever held one */

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;

/* What we replaced, for SIGSEGV and SIGBUS. Somebody who replaces us keeps our handler as the one to go
 * back to or to call. When we are then put in front of him it is by another, whose predecessor he is, and
 * the old one still leads to what was there before it: with one handler for both the chain would be
 * a circle. */
static struct sigaction before[2][LEVELS];
static int levels[2];

/* ---- the handler ----------------------------------------------------------------------------- */

static void pass_on(int level, int number, siginfo_t *info, void *context) {
    const struct sigaction *old = &before[number == SIGBUS][level];
    if ((old->sa_flags & SA_SIGINFO) && old->sa_sigaction) {
        old->sa_sigaction(number, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(number);
    } else if (old->sa_handler == SIG_DFL || info->si_code > 0) {
        /* The access is repeated, and ends the process; an ignored fault does so, too (signal(7)). What
         * somebody sent is not repeated by itself. */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(number, &standard, NULL);
        if (info->si_code <= 0)
            (void)raise(number);
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

static int in_range(size_t i, uintptr_t address) {
    return address - __atomic_load_n(&ranges[i].base, __ATOMIC_RELAXED) <
           __atomic_load_n(&ranges[i].nbytes, __ATOMIC_RELAXED);
}

static int answer(size_t i, uintptr_t address, int write) {
    int done = 0;
    __atomic_fetch_add(&ranges[i].users, 1, __ATOMIC_SEQ_CST);
    fault_mechanism *m = __atomic_load_n(&ranges[i].m, __ATOMIC_SEQ_CST);
    if (m && in_range(i, address)) /* another may have come in its place */
        done = m->owner.fault(m->owner.self, address - (uintptr_t)m->space.base, write);
    __atomic_fetch_sub(&ranges[i].users, 1, __ATOMIC_SEQ_CST);
    return done;
}

static void on_fault(int level, int number, siginfo_t *info, void *context) {
    int saved = errno, done = 0;
    uintptr_t address = (uintptr_t)info->si_addr;
    size_t used = __atomic_load_n(&ranges_used, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < used && !done && info->si_code > 0; i++)
        if (in_range(i, address))
            done = answer(i, address, is_write(context));
    if (!done)
        pass_on(level, number, info, context);
    errno = saved;
}

#define HANDLER(level)                                                                             \
    static void on_fault_##level(int number, siginfo_t *info, void *context) {                     \
        on_fault(level, number, info, context);                                                    \
    }
HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)
HANDLER(4)
HANDLER(5)
HANDLER(6)
HANDLER(7)
static void (*const handlers[LEVELS])(int, siginfo_t *, void *) = {
    on_fault_0, on_fault_1, on_fault_2, on_fault_3, on_fault_4, on_fault_5, on_fault_6, on_fault_7};

/* A child has none of the ranges, and another thread may have been in the handler. */
static void after_fork(void) {
    memset(ranges, 0, sizeof ranges);
    ranges_used = 0;
    pthread_mutex_init(&installing, NULL);
}

static void register_after_fork(void) { (void)pthread_atfork(NULL, NULL, after_fork); }

static int is_ours(const struct sigaction *action) {
    for (int i = 0; i < LEVELS; i++)
        if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handlers[i])
            return 1;
    return 0;
}

static int same(const struct sigaction *a, const struct sigaction *b) {
    if ((a->sa_flags ^ b->sa_flags) & SA_SIGINFO)
        return 0;
    return a->sa_flags & SA_SIGINFO ? a->sa_sigaction == b->sa_sigaction
                                    : a->sa_handler == b->sa_handler;
}

/* Again when somebody has put a handler in front of ours since: it would see every first touch as the
 * end of the program. */
static int install(int number) {
    const int which = number == SIGBUS;
    struct sigaction now, ours = {.sa_flags = SA_SIGINFO | SA_RESTART};
    int level = 0;
    sigemptyset(&ours.sa_mask);
    if (sigaction(number, NULL, &now))
        return 0;
    if (is_ours(&now))
        return 1;
    while (level < levels[which] && !same(&before[which][level], &now))
        level++;
    if (level == LEVELS) {
        errno = EBUSY;
        return 0;
    }
    if (level == levels[which]) {
        before[which][level] = now;
        levels[which]++;
    }
    ours.sa_sigaction = handlers[level];
    return !sigaction(number, &ours, NULL);
}

int fault_signal_enter(fault_mechanism *m) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_after_fork);
    pthread_mutex_lock(&installing);
    int good = install(SIGSEGV) && install(SIGBUS);
    size_t i = 0;
    while (good && i < RANGES_MAX && ranges[i].m)
        i++;
    good = good && i < RANGES_MAX;
    if (good) {
        __atomic_store_n(&ranges[i].base, (uintptr_t)m->space.base, __ATOMIC_RELAXED);
        __atomic_store_n(&ranges[i].nbytes, m->space.nblocks * m->space.block, __ATOMIC_RELAXED);
        __atomic_store_n(&ranges[i].m, m, __ATOMIC_SEQ_CST);
        if (i >= ranges_used)
            __atomic_store_n(&ranges_used, i + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&installing);
    return good;
}

void fault_signal_leave(const fault_mechanism *m) {
    size_t i = 0;
    pthread_mutex_lock(&installing);
    while (i < ranges_used && ranges[i].m != m)
        i++;
    if (i < ranges_used) {
        __atomic_store_n(&ranges[i].nbytes, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&ranges[i].m, NULL, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&ranges[i].users, __ATOMIC_SEQ_CST))
            sched_yield();
    }
    pthread_mutex_unlock(&installing);
}
