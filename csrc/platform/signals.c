/* SPDX-License-Identifier: Apache-2.0
 *
 * A handler runs in the thread whose access failed, on that thread's stack and not on an alternate
 * one: decryption needs some 20 KiB, and alternate stacks are often smaller. It is not blocked
 * meanwhile (SA_NODEFER), since what answers may read a page of a file that cannot be had, which is
 * a signal too. Signals that we do not answer go to the previous handler.
 *
 * A handler that is set after ours sees our signals first. One that returns, as Python's own
 * does, has the access repeated for ever; one that takes every signal for the end of the program
 * ends it. So ours goes in front again: when Python tells of such a call (ccmem_signals_lead), at
 * each call about a mapping, and by a thread that looks every now and then, for handlers
 * that are set unseen: while a mapping needs signals, and while a sealed file is open whose pages
 * were used. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/signals.h"

#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

#include "ccmem.h"
#include "platform/cpu.h"
#include "platform/fork.h"

enum {
    LEVELS = 8,        /* different handlers of others that ours may be in front of */
    LOOK_NS = 20000000 /* how often the thread looks */
};

static signals_answer answers[SIGNALS_ANSWERS]; /* atomic */

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;

/* What we replaced, for SIGSEGV and SIGBUS. If another library installs a handler over ours and
 * chains to it, we install a different handler function, whose predecessor is theirs; the old one
 * still leads to what was there before it. One shared function would make the chain a loop. */
static struct sigaction before[2][LEVELS];
static int levels[2];
static unsigned holders[2]; /* how many need it in front */

/* ---- the handler ----------------------------------------------------------------------------- */

static void pass_on(int level, int number, siginfo_t *info, void *context) {
    const struct sigaction *old = &before[number == SIGBUS][level];
    if ((old->sa_flags & SA_SIGINFO) && old->sa_sigaction) {
        old->sa_sigaction(number, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(number);
    } else if (old->sa_handler == SIG_DFL || info->si_code > 0) {
        /* The access is repeated, and ends the process; an ignored fault does so, too (signal(7)).
         * A signal that was sent is not repeated by itself. */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        if (sigaction(number, &standard, NULL))
            abort(); /* or it would come here again for ever */
        if (info->si_code <= 0)
            (void)raise(number);
    }
}

static uintptr_t text_begin, text_end; /* of this module */

static int find_text(struct dl_phdr_info *info, size_t size, void *unused) {
    const uintptr_t here = (uintptr_t)find_text;
    (void)size;
    (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + p->p_vaddr;
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X) && here - begin < p->p_memsz) {
            text_begin = begin;
            text_end = begin + p->p_memsz;
            return 1;
        }
    }
    return 0;
}

/* Where a processor's context is not known, every access may be a write, and of ours. */
static int access_of(const void *context) {
    int how = 0;
#if CCMEM_X86
    enum { PF_WRITE = 2 }; /* bit 1 of a page fault's error code: Intel SDM, volume 3, 4.7 */
    const ucontext_t *c = context;
    const uintptr_t at = (uintptr_t)c->uc_mcontext.gregs[REG_RIP];
    if (c->uc_mcontext.gregs[REG_ERR] & PF_WRITE)
        how |= SIGNALS_WRITE;
#elif defined __aarch64__
    const ucontext_t *c = context;
    const uintptr_t at = (uintptr_t)c->uc_mcontext.pc;
    how |= SIGNALS_WRITE;
#else
    (void)context;
    const uintptr_t at = text_begin;
    how |= SIGNALS_WRITE;
#endif
    if (at - text_begin < text_end - text_begin)
        how |= SIGNALS_OURS;
    return how;
}

static void on_signal(int level, int number, siginfo_t *info, void *context) {
    int saved = errno, done = 0;
    if (info->si_code > 0) { /* of an access, not sent */
        const int how = access_of(context);
        for (int i = 0; i < SIGNALS_ANSWERS && !done; i++) {
            signals_answer answer = __atomic_load_n(&answers[i], __ATOMIC_ACQUIRE);
            done = answer && answer((uintptr_t)info->si_addr, how);
        }
    }
    if (!done)
        pass_on(level, number, info, context);
    errno = saved;
}

#define HANDLER(level)                                                                             \
    static void on_signal_##level(int number, siginfo_t *info, void *context) {                    \
        on_signal(level, number, info, context);                                                   \
    }
HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)
HANDLER(4)
HANDLER(5)
HANDLER(6)
HANDLER(7)
static void (*const handlers[LEVELS])(int, siginfo_t *, void *) = {on_signal_0, on_signal_1,
                                                                   on_signal_2, on_signal_3,
                                                                   on_signal_4, on_signal_5,
                                                                   on_signal_6, on_signal_7};

void signals_ask(int place, signals_answer answer) {
    __atomic_store_n(&answers[place], answer, __ATOMIC_RELEASE);
}

/* ---- in front -------------------------------------------------------------------------------- */

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

/* With the lock held. */
static int install(int number) {
    const int which = number == SIGBUS;
    struct sigaction now, ours = {.sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};
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

static int lead(void) {
    int good = 1;
    if (holders[0])
        good &= install(SIGSEGV);
    if (holders[1])
        good &= install(SIGBUS);
    return good;
}

int signals_lead(void) {
    pthread_mutex_lock(&installing);
    int good = lead();
    pthread_mutex_unlock(&installing);
    return good;
}

int ccmem_signals_lead(void) { return signals_lead(); }

/* ---- the thread that looks ------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock; /* is held while it is started or stopped */
    unsigned users;
    int runs;
    pthread_t thread;
    sem_t stop;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *look(void *unused) {
    struct timespec next;
    (void)unused;
    clock_gettime(CLOCK_REALTIME, &next);
    for (;;) {
        next.tv_nsec += LOOK_NS;
        if (next.tv_nsec >= 1000000000) {
            next.tv_nsec -= 1000000000;
            next.tv_sec++;
        }
        if (!sem_timedwait(&watch.stop, &next))
            return NULL;
        if (errno == ETIMEDOUT)
            (void)signals_lead();
        clock_gettime(CLOCK_REALTIME, &next); /* whatever became of the clock */
    }
}

int signals_watch(void) {
    pthread_mutex_lock(&watch.lock);
    watch.users++;
    if (!watch.runs && !sem_init(&watch.stop, 0, 0)) {
        watch.runs = signals_thread(look, NULL, &watch.thread);
        if (!watch.runs)
            sem_destroy(&watch.stop);
    }
    const int runs = watch.runs;
    pthread_mutex_unlock(&watch.lock);
    return runs;
}

void signals_unwatch(void) {
    pthread_mutex_lock(&watch.lock);
    if (!--watch.users && watch.runs) {
        (void)sem_post(&watch.stop);
        pthread_join(watch.thread, NULL);
        sem_destroy(&watch.stop);
        watch.runs = 0;
    }
    pthread_mutex_unlock(&watch.lock);
}

/* A child has no such thread, and others may have held the locks. Which handlers are in front it
 * inherits; what they are held for, the holders say anew. */
static void in_child(void) {
    pthread_mutex_init(&installing, NULL);
    pthread_mutex_init(&watch.lock, NULL);
    watch.users = 0;
    watch.runs = 0;
    memset(holders, 0, sizeof holders);
}

static void begin(void) {
    (void)dl_iterate_phdr(find_text, NULL);
    fork_handle(FORK_SIGNALS, (fork_handlers){.in_child = in_child});
}

int signals_hold(int number) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, begin);
    pthread_mutex_lock(&installing);
    int good = install(number);
    holders[number == SIGBUS] += good != 0;
    pthread_mutex_unlock(&installing);
    return good;
}

void signals_release(int number) {
    pthread_mutex_lock(&installing);
    holders[number == SIGBUS] -= holders[number == SIGBUS] != 0;
    pthread_mutex_unlock(&installing);
}

int signals_thread(void *(*body)(void *), void *arg, void *thread) {
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGABRT);
    if (pthread_sigmask(SIG_SETMASK, &all, &old))
        return 0;
    int failed = pthread_create(thread, NULL, body, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed)
        errno = failed;
    return !failed;
}
