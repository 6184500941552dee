/* SPDX-License-Identifier: Apache-2.0
 *
 * Has a reader of a page lose its race against a writer as often as a test wants, in every run
 * alike.
 *
 * The reader is given three system pages to read into, of which the first or the last cannot be
 * written. Its store there is a SIGSEGV, and the handler, in the reader's own thread and in the
 * middle of the read, moves the version word of the page that is read, as a writer would. It then
 * allows the store, and forbids the other end of the three, so that the next try stops there again:
 * what an instruction stores across a border between two pages is allowed as a whole, since the
 * middle one always is. If the reader has set the lock bit, the handler notes it and leaves the
 * word alone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 3 };

static const uint64_t LOCK = (uint64_t)1 << 63;

static uint8_t *pages;
static uint64_t *word, first; /* the page's version word, and what it was */
static long moves, limit, locked;
static struct sigaction before;

static void on_signal(int number, siginfo_t *info, void *context) {
    const uintptr_t offset = (uintptr_t)info->si_addr - (uintptr_t)pages;
    const int saved = errno;
    (void)context;
    if (offset >= PAGES * PAGE) { /* repeated, and the end of the process */
        sigaction(number, &before, NULL);
        return;
    }
    const uint64_t end = offset / PAGE, other = PAGES - 1 - end;
    const uint64_t now = __atomic_load_n(word, __ATOMIC_SEQ_CST);
    if (now & LOCK)
        locked++;
    else if (moves < limit)
        __atomic_store_n(word, first + (uint64_t)++moves, __ATOMIC_SEQ_CST);
    else
        __atomic_store_n(word, first, __ATOMIC_SEQ_CST);
    if (mprotect(pages + end * PAGE, PAGE, PROT_READ | PROT_WRITE) ||
        mprotect(pages + other * PAGE, PAGE, PROT_NONE))
        sigaction(number, &before, NULL);
    errno = saved;
}

/* Maps the three pages at `at`, where nothing may lie, or anywhere (NULL). NULL when they cannot
 * be. */
void *moving_word_map(void *at) {
    void *p = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED_NOREPLACE : 0), -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (at && p != at) { /* a kernel that does not know the flag */
        munmap(p, PAGES * PAGE);
        return NULL;
    }
    return p;
}

/* Before mappings are made: their handler then stands in front of this one, and hands on what is
 * none of theirs. 0 when the system refuses. */
int moving_word_handle(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    return !sigaction(SIGSEGV, &action, &before);
}

/* From now on a store to the first page or the last moves *version, `most` times, and then puts it
 * back. 0 when the system refuses. */
int moving_word_start(void *at, uint64_t *version, long most) {
    pages = at;
    word = version;
    first = *version;
    limit = most;
    moves = locked = 0;
    return !mprotect(pages, PAGE, PROT_NONE);
}

/* Ends it, and leaves all pages accessible. 0 when the system refuses. */
int moving_word_stop(void) { return !mprotect(pages, PAGES * PAGE, PROT_READ | PROT_WRITE); }

/* How often the word was moved, and how often its lock bit was set when the reader stored. */
long moving_word_moves(void) { return moves; }
long moving_word_locked(void) { return locked; }
