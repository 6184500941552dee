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
#include <ucontext.h>

#include "cpu.h"

enum { RANGES_MAX = 1024 };

/* The ranges of this process, which the handler searches without a lock. */
static fault_mechanism *ranges[RANGES_MAX]; /* atomic */
static size_t ranges_used;                  /* atomic; places that ever held one */
static unsigned searching;                  /* atomic; handlers that may hold a range */

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before[2]; /* what we replaced, for SIGSEGV and SIGBUS */

/* ---- the handler ----------------------------------------------------------------------------- */

static void pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction *old = &before[number == SIGBUS];
    if ((old->sa_flags & SA_SIGINFO) && old->sa_sigaction) {
        old->sa_sigaction(number, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(number);
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
static int install(int number) {
    struct sigaction now, ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&ours.sa_mask);
    int good = !sigaction(number, NULL, &now);
    if (good && !((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault)) {
        before[number == SIGBUS] = now;
        good = !sigaction(number, &ours, NULL);
    }
    return good;
}

int fault_signal_enter(fault_mechanism *m) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_after_fork);
    pthread_mutex_lock(&installing);
    int good = install(SIGSEGV) && install(SIGBUS);
    size_t i = 0;
    while (good && i < RANGES_MAX && ranges[i])
        i++;
    good = good && i < RANGES_MAX;
    if (good) {
        __atomic_store_n(&ranges[i], m, __ATOMIC_SEQ_CST);
        if (i >= ranges_used)
            __atomic_store_n(&ranges_used, i + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&installing);
    return good;
}

void fault_signal_leave(const fault_mechanism *m) {
    pthread_mutex_lock(&installing);
    for (size_t i = 0; i < ranges_used; i++)
        if (ranges[i] == m)
            __atomic_store_n(&ranges[i], NULL, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&installing);
    while (__atomic_load_n(&searching, __ATOMIC_SEQ_CST))
        sched_yield();
}
