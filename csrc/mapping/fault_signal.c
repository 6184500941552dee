/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes the owner's lock, which no thread holds while it touches a range, and calls nothing that
 * allocates memory. */
#include "mapping/fault_signal.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include "platform/fork.h"
#include "platform/signals.h"
#include "platform/spans.h"

static span_table ranges = SPAN_TABLE;

static int ask_owner(void *self, uintptr_t address, int write) {
    fault_mechanism *m = self;
    return m->owner.fault(m->owner.self, address - (uintptr_t)m->space.base, write);
}

static int answer(uintptr_t address, int how) {
    return span_ask(&ranges, address, ask_owner, (how & SIGNALS_WRITE) != 0);
}

/* A child has none of the ranges, and another thread may have been in the handler. */
static void in_child(void) { span_forget(&ranges); }

static void begin(void) {
    signals_ask(SIGNALS_OF_MAPPINGS, answer);
    fork_handle(FORK_TOUCHES, (fork_handlers){.in_child = in_child});
}

int fault_signal_enter(fault_mechanism *m) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, begin);
    /* Both: which one a touch raises depends on the mechanism and on the other handlers. */
    if (!signals_hold(SIGSEGV))
        return 0;
    if (signals_hold(SIGBUS)) {
        m->span = span_enter(&ranges, m->space.base, m->space.nblocks * m->space.block, m);
        if (m->span) {
            (void)signals_watch(); /* without: Python's handlers are told of all the same */
            return 1;
        }
        signals_release(SIGBUS);
    }
    signals_release(SIGSEGV);
    return 0;
}

void fault_signal_leave(fault_mechanism *m) {
    span_leave(&ranges, m->span);
    signals_unwatch();
    signals_release(SIGBUS);
    signals_release(SIGSEGV);
}
