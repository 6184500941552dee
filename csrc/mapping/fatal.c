/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/fatal.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "mapping/patience.h"
#include "mapping/registry.h"
#include "mapping/wipe.h"
#include "store/store.h"

enum {
    TEXT_SIZE = 1024,
    LOCK_TRIES = 100 /* BUSY_WAIT_NS each: as long as some blocks take to open */
};

static int dying; /* atomic; 2: `the_dying` tells which thread is in window_die() */
static pthread_t the_dying;

int window_dying_here(void) {
    return __atomic_load_n(&dying, __ATOMIC_SEQ_CST) == 2 &&
           pthread_equal(the_dying, pthread_self());
}

/* Writes what happened; returns the length of all there is to say, which may be more than fits. */
static int describe(const window *w, size_t block, ccmem_status status, ccmem_failure failure,
                    const char *file, char *text) {
    const unsigned long long page = failure.page;
    if (file)
        return snprintf(
            text, TEXT_SIZE,
            "pyccmem: page %llu of '%s' was touched through a mapping and could not be had "
            "from the file '%.400s': it was cut short while it was open, or its file system "
            "failed. A touch has no caller to tell, so all windows were wiped and this "
            "process ends.\n",
            page, w->name, file);
    if (status == CCMEM_ERR_INTEGRITY)
        return snprintf(
            text, TEXT_SIZE,
            "pyccmem: page %llu of '%s' was touched through a mapping and does not match its "
            "tag: it was changed since it was written. A touch has no caller to tell, so all "
            "windows were wiped and this process ends; verify() names the changed pages.\n",
            page, w->name);
    if (status == CCMEM_ERR_READONLY)
        return snprintf(
            text, TEXT_SIZE,
            "pyccmem: a write to the read-only mapping of '%s' (mode 'r'). A touch has no "
            "caller to tell, so all windows were wiped and this process ends.\n",
            w->name);
    return snprintf(
        text, TEXT_SIZE,
        "pyccmem: block %zu of a mapping of '%s' cannot be opened or sealed (%s). A touch "
        "has no caller to tell, so all windows were wiped and this process ends.\n",
        block, w->name, ccmem_status_text(status));
}

void window_die(window *w, size_t block, ccmem_status status) {
    char text[TEXT_SIZE];
    ccmem_failure failure = ccmem_last_failure();
    const char *file =
        status == CCMEM_ERR_INTEGRITY ? ccmem_store_lost(w->store, failure.page) : NULL;
    if (__atomic_exchange_n(&dying, 1, __ATOMIC_SEQ_CST))
        for (;;) /* another thread says why, and ends the process */
            wait_ns(BUSY_WAIT_NS);
    the_dying = pthread_self();
    __atomic_store_n(&dying, 2, __ATOMIC_SEQ_CST);
    fault_hurry();
    int n = describe(w, block, status, failure, file, text);
    for (int i = 0; file && i < n - 1 && i < TEXT_SIZE - 1; i++)
        if ((unsigned char)text[i] < 32 || text[i] == 127) /* a file may have any name */
            text[i] = '?';
    wipe_window(w);
    /* Another window's lock may be held for as long as a block takes; this does not wait for ever.
     */
    for (window *other = windows_first(); other; other = other->next)
        if (other != w && other->mechanism) {
            for (int i = 0; i < LOCK_TRIES && pthread_mutex_trylock(&other->lock); i++)
                wait_ns(BUSY_WAIT_NS);
            wipe_window(other);
        }
    if (n > TEXT_SIZE - 1)
        n = TEXT_SIZE - 1;
    (void)!write(STDERR_FILENO, text, n > 0 ? (size_t)n : 0);
    abort();
}
