/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/fault_help.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "platform/signals.h"

/* sem_post(3) is safe in a signal's handler. */
struct fault_helper {
    pthread_t thread;
    sem_t work;
    int stop; /* atomic */
};

static void *help(void *arg) {
    fault_mechanism *m = arg;
    struct fault_helper *h = m->helper;
    for (;;) {
        while (sem_wait(&h->work) && errno == EINTR)
            ;
        if (__atomic_load_n(&h->stop, __ATOMIC_ACQUIRE))
            return NULL;
        while (!sem_trywait(&h->work)) /* one look serves them all */
            ;
        while (m->owner.idle(m->owner.self, 1))
            ;
        if (__atomic_load_n(&h->stop, __ATOMIC_ACQUIRE))
            return NULL;
    }
}

void fault_help(fault_mechanism *m) {
    struct fault_helper *h = ccmem_threads() > 1 ? calloc(1, sizeof *h) : NULL;
    if (!h)
        return;
    if (sem_init(&h->work, 0, 0)) {
        free(h);
        return;
    }
    /* A range that was touched before may poke it: it is complete when it shows. */
    m->helper = h;
    if (!signals_thread(help, m, &h->thread)) {
        m->helper = NULL;
        sem_destroy(&h->work);
        free(h);
    }
}

void fault_poke(fault_mechanism *m) {
    if (m->helper)
        (void)sem_post(&m->helper->work); /* EOVERFLOW: it has been told often enough */
}

void fault_stop_help(fault_mechanism *m) {
    struct fault_helper *h = m->helper;
    if (!h)
        return;
    __atomic_store_n(&h->stop, 1, __ATOMIC_RELEASE);
    (void)sem_post(&h->work);
    pthread_join(h->thread, NULL);
    m->helper = NULL;
    sem_destroy(&h->work);
    free(h);
}
