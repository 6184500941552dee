/* SPDX-License-Identifier: Apache-2.0
 * The handlers of SIGSEGV and SIGBUS: which modules are asked about an access, which handlers were
 * there before, and how ours stays in front of handlers that others set. */
#ifndef CCMEM_SIGNALS_H
#define CCMEM_SIGNALS_H

#include <stdint.h>

/* What an access is, or was answered with. */
enum {
    SIGNALS_WRITE = 1, /* of `how`: it would have written */
    SIGNALS_OURS = 2   /* of `how`: by an instruction of this module */
};

/* A module's answer to a handler, in the thread whose access failed. 1: the access is to be
 * repeated. 0: it is not the module's. */
typedef int (*signals_answer)(uintptr_t address, int how);

/* Which modules are asked, in this order: touches of mappings are frequent, and need no lock of all
 * threads.
 */
enum { SIGNALS_OF_MAPPINGS, SIGNALS_OF_FILES, SIGNALS_ANSWERS };

/* From now on `answer` is asked in that place, for good. */
void signals_ask(int place, signals_answer answer);

/* Puts our handler in front for this signal, and has signals_lead() put it there again, until
 * signals_release() was called as often. 0 when the system refuses (errno says why). */
int signals_hold(int number);

void signals_release(int number);

/* From now on, until signals_unwatch() was called as often, a thread does signals_lead() every 20
 * ms. 0 when there is no thread to be had; to be undone all the same. */
int signals_watch(void);

void signals_unwatch(void);

/* Puts our handlers in front again where others have set theirs since, which get what is not for
 * us. 0 when the system refuses (errno says why). */
int signals_lead(void);

/* A thread with every signal blocked but those that an access may raise, and SIGABRT. 0 when there
 * is none to be had. */
int signals_thread(void *(*body)(void *), void *arg, void *thread);

#endif
