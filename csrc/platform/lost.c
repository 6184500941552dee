/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/lost.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <search.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "platform/fork.h"
#include "platform/signals.h"

enum {
    LOCK_TRIES = 1 << 10,
    LOCK_WAITS = 10000, /* of a millisecond: a fork of a large process holds the lock for long */
    LOCK_WAIT_NS = 1000000
};

/* The path of a file, shared by the mappings of it that were made one after the other. */
typedef struct path {
    size_t refs;
    int told; /* it is never freed: an error in some thread shows it */
    char text[];
} path;

typedef struct watched {
    uintptr_t begin, end;
    path *file;
    uint8_t *lost; /* one bit a page of the system's; NULL: none */
    int reported;
} watched;

/* A tree (tsearch(3)) by address. No thread that holds the lock touches a page of a file, so the
 * handler of such a touch never waits for itself. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *tree;
static size_t count; /* atomic; in the tree */
static path *newest;
static size_t unit; /* the system's page */
int lost_unguarded;
static int asked; /* for a thread that looks for others' handlers */

/* Ranges do not overlap, so those that do are the same one. */
static int order(const void *a, const void *b) {
    const watched *x = a, *y = b;
    return x->end <= y->begin ? -1 : x->begin >= y->end ? 1 : 0;
}

static watched *find(uintptr_t begin, uintptr_t end) {
    const watched wanted = {.begin = begin, .end = end};
    watched **found = tfind(&wanted, &tree, order);
    return found ? *found : NULL;
}

/* ---- the handler ----------------------------------------------------------------------------- */

static size_t bits_size(const watched *w) { return ((w->end - w->begin) / unit + 7) / 8; }

/* Puts zeros where the page was, and remembers it. 0 when the system refuses. */
static int replace(watched *w, uintptr_t address) {
    const uintptr_t page = address & ~(uintptr_t)(unit - 1);
    const size_t number = (page - w->begin) / unit;
    if (!w->lost) {
        void *bits =
            mmap(NULL, bits_size(w), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (bits == MAP_FAILED)
            return 0;
        w->lost = bits;
    }
    w->lost[number / 8] |= (uint8_t)(1 << number % 8);
    return mmap((void *)page, unit, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
           MAP_FAILED;
}

static void put(const char *text) { (void)!write(STDERR_FILENO, text, strlen(text)); }

/* For an access that no error can tell of; nothing here allocates memory. */
static void report(const char *file) {
    put("pyccmem: a page of the sealed file '");
    for (const char *c = file; *c; c++)
        (void)!write(STDERR_FILENO, (unsigned char)*c < 32 || *c == 127 ? "?" : c, 1);
    put("' could not be had: the file was cut short while it was open, or its file system failed. "
        "What touched it is not pyccmem's own code, so there is no caller to tell.\n");
}

/* Bounded, so that a thread that crashes while it holds the lock does not wait for itself. */
static int lock_in_handler(void) {
    const struct timespec moment = {.tv_nsec = LOCK_WAIT_NS};
    for (int tries = 0; tries < LOCK_TRIES + LOCK_WAITS; tries++) {
        if (!pthread_mutex_trylock(&lock))
            return 1;
        if (tries < LOCK_TRIES)
            sched_yield();
        else
            (void)nanosleep(&moment, NULL);
    }
    return 0;
}

static int answer(uintptr_t address, int how) {
    int done = 0, again = 0;
    const char *told = NULL;
    if (!__atomic_load_n(&count, __ATOMIC_ACQUIRE) || !lock_in_handler())
        return 0;
    watched *w = find(address, address + 1);
    if (w) {
        done = (how & SIGNALS_OURS) && replace(w, address);
        if (!done) {
            again = w->reported;
            w->reported = 1;
            w->file->told = 1;
            told = w->file->text;
        }
    }
    pthread_mutex_unlock(&lock);
    if (told && !again)
        report(told);
    if (again) {
        /* The handler that got the signal after the message returned, and would do so for ever. */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        if (sigaction(SIGBUS, &standard, NULL))
            abort();
        return 1;
    }
    return done;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* The name that an open file has now; with the lock held. NULL when there is no memory. */
static path *path_of(int fd) {
    char link[64], text[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, text, sizeof text - 1);
    if (n < 0) /* no /proc */
        n = snprintf(text, sizeof text, "(unknown)");
    text[n] = 0;
    if (!newest || strcmp(newest->text, text)) {
        path *p = malloc(sizeof *p + (size_t)n + 1);
        if (!p)
            return NULL;
        *p = (path){0};
        memcpy(p->text, text, (size_t)n + 1);
        newest = p; /* the one before is kept by what refers to it */
    }
    newest->refs++;
    return newest;
}

static void drop(path *p) {
    if (--p->refs || p->told)
        return;
    if (p == newest)
        newest = NULL;
    free(p);
}

static void prepare(void) { pthread_mutex_lock(&lock); }

static void in_parent(void) { pthread_mutex_unlock(&lock); }

/* A child has the mappings, too. */
static void in_child(void) {
    pthread_mutex_init(&lock, NULL);
    asked = 0;
    lost_unguarded = count > 0;
    if (count)
        (void)signals_hold(SIGBUS);
}

static void begin(void) {
    unit = (size_t)sysconf(_SC_PAGESIZE);
    signals_ask(SIGNALS_OF_FILES, answer);
    fork_handle(FORK_LOST, (fork_handlers){prepare, in_parent, in_child});
}

static ccmem_status enter(watched *w) {
    watched **there = tsearch(w, &tree, order);
    if (!there)
        return CCMEM_ERR_NOMEM;
    if (*there != w) { /* never: two mappings at one address */
        errno = EEXIST;
        return CCMEM_ERR_IO;
    }
    return CCMEM_OK;
}

ccmem_status lost_watch(const void *p, size_t n, int fd) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    watched *w = malloc(sizeof *w);
    if (!w)
        return CCMEM_ERR_NOMEM;
    /* Again for each: another library may have set a handler since. */
    if (!signals_hold(SIGBUS)) {
        int number = errno;
        free(w);
        errno = number;
        return CCMEM_ERR_IO;
    }
    pthread_once(&once, begin);
    pthread_mutex_lock(&lock);
    const uintptr_t begins = (uintptr_t)p;
    *w = (watched){.begin = begins, .end = begins + ((n + unit - 1) & ~(unit - 1))};
    w->file = path_of(fd);
    ccmem_status status = w->file ? enter(w) : CCMEM_ERR_NOMEM;
    const int number = errno;
    if (status == CCMEM_OK)
        __atomic_fetch_add(&count, 1, __ATOMIC_RELEASE);
    else if (w->file)
        drop(w->file);
    if (status != CCMEM_OK || count > 1)
        signals_release(SIGBUS); /* one hold serves all */
    else
        __atomic_store_n(&lost_unguarded, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&lock);
    if (status != CCMEM_OK)
        free(w);
    errno = number;
    return status;
}

/* With the lock held, of which the thread that looks has no need. */
static void unguard(void) {
    __atomic_store_n(&lost_unguarded, 0, __ATOMIC_RELAXED);
    if (asked)
        signals_unwatch();
    asked = 0;
    signals_release(SIGBUS);
}

void lost_guard_now(void) {
    pthread_mutex_lock(&lock);
    if (count && !asked) {
        asked = 1;
        if (signals_watch())
            __atomic_store_n(&lost_unguarded, 0, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    (void)signals_lead(); /* a refusal leaves things as they are */
}

void lost_unwatch(const void *p) {
    if (!__atomic_load_n(&count, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&lock);
    watched *w = find((uintptr_t)p, (uintptr_t)p + 1);
    if (w && w->begin == (uintptr_t)p) {
        (void)tdelete(w, &tree, order);
        drop(w->file);
        if (!__atomic_sub_fetch(&count, 1, __ATOMIC_RELEASE))
            unguard();
    } else {
        w = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (w && w->lost)
        munmap(w->lost, bits_size(w));
    free(w);
}

const char *lost_path(const void *p, size_t n) {
    const char *found = NULL;
    if (!n || !__atomic_load_n(&count, __ATOMIC_ACQUIRE))
        return NULL;
    pthread_mutex_lock(&lock);
    watched *w = find((uintptr_t)p, (uintptr_t)p + 1);
    if (w && w->lost) {
        const size_t first = (uintptr_t)p - w->begin, most = w->end - (uintptr_t)p;
        const size_t last = first + (n < most ? n : most) - 1;
        for (size_t i = first / unit; i <= last / unit && !found; i++)
            if (w->lost[i / 8] >> i % 8 & 1)
                found = w->file->text;
        w->file->told |= found != NULL;
    }
    pthread_mutex_unlock(&lock);
    return found;
}
