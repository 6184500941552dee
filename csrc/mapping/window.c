/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames. A block is absent; or being opened by some thread; or opened, in a frame but not at its
 * address; or placed at its address, where threads use it. A block that is to go is first taken
 * from its address, at once for every thread, and then sealed if it was written: no write is lost,
 * and whoever touches it waits for the lock.
 *
 * Nobody sees the touches of a block that is placed, so what was used last is not known, only what
 * faulted last. Two things are made of that. A thread that reads block after block (a stream) gets
 * its next blocks opened ahead by threads of the mechanism's, and leaves the oldest of its own
 * behind: a pass over more than the window does not sweep out everything else, the next pass finds
 * a part of it, and the frames it goes through stay in the caches. Everything else goes first in,
 * first out; but the last CCMEM_WINDOW_BLOCKS blocks that faulted never go: an instruction that
 * needs them all would begin again for ever.
 *
 * Of the blocks opened ahead every few are not placed: their fault, which costs no decryption,
 * tells how far the reader has come. The others are, and touched without a fault.
 *
 * One lock for all, which is not held while a block is opened: several threads open at once. No
 * thread that holds it touches the range but for blocks that are placed, so a fault never waits for
 * itself. */
#include "mapping/window.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "memory/budget.h"
#include "memory/ranges.h"
#include "memory/secret.h"
#include "platform/fork.h"
#include "platform/lost.h"
#include "platform/signals.h"
#include "store/store.h"

enum {
    WINDOW_SPARE = CCMEM_WINDOW_BLOCKS, /* frames that pins leave, and prefault() if it can */
    STREAMS = 8,
    AHEAD_MAX = 6,     /* blocks opened ahead of a stream at most */
    BEHIND = 8,        /* how far behind it, beside these, its old blocks are looked for */
    GRACE_NS = 100000, /* a thread that was woken for a block gets this long to use it */
    BUSY_WAIT_NS = 200000,
    BUSY_WAITS = 2500, /* at least */
    BUSY_AGAIN = 50    /* for the next frame, after one for which all that was in vain */
};

/* What the kernel, or another thread, holds longer than this will not come back. Counted too, since
 * a process that was stopped finds that all the time has gone by. */
static const uint64_t BUSY_NS = 10000000000;

static const uint32_t NONE = UINT32_MAX;

typedef enum frame_state { EMPTY = 0, OPENING, OPENED, PLACED } frame_state;

typedef struct frame {
    frame_state state;
    int written; /* may differ from what is stored */
    int wanted;  /* being opened, and some thread waits for it: 1; to write there: 2 */
    uint32_t pins;
    size_t block;
    uint64_t order; /* the lowest goes first */
    uint64_t since; /* when it was placed, in nanoseconds */
} frame;

/* A reader that went from block to block. */
typedef struct stream {
    size_t last;  /* the block of its last fault */
    size_t end;   /* the first block not opened ahead */
    unsigned run; /* faults in a row; 0: it may be none */
    uint64_t order;
} stream;

static ccmem_region_stats totals; /* of all windows, each word atomic */

struct window {
    pthread_mutex_t lock;
    window *next, *previous; /* of all windows of the process */
    uint64_t generation;
    ccmem_store *store;
    uint64_t origin, from, to;
    const fault_ops *ops;
    fault_mechanism *mechanism; /* NULL when closed */
    fault_space space;
    int writable;
    int closing;
    int refused;            /* insist() gave up, and has not succeeded since */
    pthread_cond_t changed; /* a frame's state, other than by the thread that waits */
    size_t ahead, stride;   /* blocks opened ahead; each so many of them are not placed */
    size_t pinned;          /* frames */
    size_t waiting;         /* frames that are being opened, and wanted */
    size_t recent[CCMEM_WINDOW_BLOCKS]; /* the blocks that faulted last, the last one first */
    uint64_t clock;
    ccmem_region_stats count;
    stream streams[STREAMS];
    frame *frames;
    uint32_t *where; /* the frame of each block, or NONE */
    char name[];
};

static pthread_mutex_t windows_lock = PTHREAD_MUTEX_INITIALIZER;
static window *windows;

/* With the lock held. */
#define COUNT(w, what) ((w)->count.what++, __atomic_fetch_add(&totals.what, 1, __ATOMIC_RELAXED))

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void wait_ns(long ns) {
    struct timespec t = {.tv_nsec = ns};
    nanosleep(&t, NULL);
}

static uint8_t *frame_at(const window *w, const frame *f) {
    return w->space.frames + (size_t)(f - w->frames) * w->space.block;
}

static uint8_t *block_at(const window *w, size_t block) {
    return w->space.base + block * w->space.block;
}

static frame *frame_of(const window *w, size_t block) {
    return w->where[block] == NONE ? NULL : &w->frames[w->where[block]];
}

static _Noreturn void die(window *w, size_t block, ccmem_status status);
static int dying;           /* atomic; 2: `the_dying` tells which thread is in die() */
static pthread_t the_dying; /* its own touches are not answered: the lock is taken */
static int open_ahead(window *w);

/* A frame holds plaintext from now on; and no longer. */
static void expose(window *w) {
    budget_expose(w->space.block);
    w->count.resident += w->space.block;
    if (w->count.resident > w->count.peak)
        w->count.peak = w->count.resident;
}

static void hide(window *w) {
    budget_hide(w->space.block);
    w->count.resident -= w->space.block;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* What of a block belongs to the window: the first byte in the store, and where that is in the
 * block. */
static size_t extent(const window *w, size_t block, uint64_t *offset, size_t *skip) {
    uint64_t first = w->origin + (uint64_t)block * w->space.block, last = first + w->space.block;
    *offset = first < w->from ? w->from : first;
    *skip = (size_t)(*offset - first);
    return (size_t)((last < w->to ? last : w->to) - *offset);
}

static ccmem_status seal(window *w, size_t block, const uint8_t *data) {
    uint64_t offset;
    size_t skip, n = extent(w, block, &offset, &skip);
    COUNT(w, write_backs);
    return store_write_present(w->store, offset, data + skip, n, w->ops->waits);
}

/* Opens a block into a frame that is EMPTY, or `reused` and still holds another; `alone` in this
 * thread only. The lock is dropped meanwhile. On failure the frame is wiped. */
static ccmem_status open_block(window *w, size_t block, frame *f, int reused, int alone) {
    uint64_t offset;
    size_t skip, n = extent(w, block, &offset, &skip);
    uint8_t *to = frame_at(w, f);
    *f = (frame){.state = OPENING, .block = block, .order = ++w->clock};
    w->where[block] = (uint32_t)(f - w->frames);
    COUNT(w, fills);
    if (!reused)
        expose(w);
    pthread_mutex_unlock(&w->lock);
    if (skip)
        memset(to, 0, skip);
    if (skip + n < w->space.block)
        memset(to + skip + n, 0, w->space.block - skip - n);
    ccmem_status status = alone ? store_read_alone(w->store, offset, to + skip, n)
                                : ccmem_store_read(w->store, offset, to + skip, n);
    ccmem_failure failure = ccmem_last_failure();
    if (status != CCMEM_OK) {
        ccmem_wipe(to, w->space.block);
        store_set_failure(failure);
    }
    pthread_mutex_lock(&w->lock);
    w->waiting -= f->wanted != 0;
    f->state = status == CCMEM_OK ? OPENED : EMPTY;
    if (status != CCMEM_OK) {
        w->where[block] = NONE;
        hide(w);
        if (f->wanted) /* by a thread that nobody else will answer */
            die(w, block, status);
    }
    pthread_cond_broadcast(&w->changed);
    return status;
}

/* 1 while one more try, the number `tries` from 0 on, may help. */
static int patient(int tries, uint64_t since) {
    return tries < BUSY_WAITS || now() - since < BUSY_NS;
}

/* Until the kernel lets go of what it holds, or takes it. */
static int insist(window *w, int (*step)(window *, frame *, int), frame *f, int argument) {
    const uint64_t since = now();
    for (int i = 0; patient(i, since); i++) {
        if (step(w, f, argument)) {
            w->refused = 0;
            return 1;
        }
        if (w->refused && i >= BUSY_AGAIN)
            break;
        wait_ns(BUSY_WAIT_NS);
    }
    w->refused = 1;
    return 0;
}

/* Wipes a block that the kernel keeps at its place. Where that is for reading only, a write would
 * be a fault that nobody answers: the kernel is to take the pages, which it wipes, and if it
 * refuses even that, they go when the range or the process ends. */
static void wipe_placed(window *w, const frame *f) {
    uint8_t *p = block_at(w, f->block);
    if (w->ops->tracks ? w->ops->allow(w->mechanism, f->block) : w->writable)
        ccmem_wipe(p, w->space.block);
    else
        (void)madvise(p, w->space.block, MADV_DONTNEED);
}

/* Ends the process: the frame's memory is neither here nor there, or protected for good. */
static _Noreturn void break_off(window *w, frame *f) {
    f->state =
        EMPTY; /* nobody can wipe it any more, nor may try: that would be a fault of its own */
    die(w, f->block, CCMEM_ERR_FAULT);
}

/* 0 when the system refuses, and nothing has changed. */
static int place(window *w, frame *f, int write) {
    int writable = w->writable && (write || !w->ops->tracks);
    int done = w->ops->place(w->mechanism, f->block, (size_t)(f - w->frames), writable);
    if (done < 0)
        break_off(w, f);
    if (!done)
        return 0;
    f->state = PLACED;
    f->written |= writable;
    f->since = now();
    return 1;
}

static int take(window *w, frame *f, int unused) {
    (void)unused;
    if (f->state == PLACED) {
        int done = w->ops->take(w->mechanism, f->block, (size_t)(f - w->frames), f->written);
        if (done < 0)
            break_off(w, f);
        if (!done)
            return 0;
        f->state = OPENED;
    }
    return 1;
}

/* Takes a block out of a frame, which still holds it afterwards and is to be filled or wiped at
 * once. 0 when it has to stay, *status says why if it could not be sealed. */
static int evict(window *w, frame *f, ccmem_status *status) {
    int placed = f->state == PLACED;
    if (!take(w, f, 0))
        return 0;
    if (f->written) {
        *status = seal(w, f->block, frame_at(w, f));
        if (*status != CCMEM_OK) {
            if (placed)
                (void)insist(w, place, f, 1);
            return 0;
        }
    }
    COUNT(w, evictions);
    w->where[f->block] = NONE;
    return 1;
}

/* ---- which frame ----------------------------------------------------------------------------- */

static frame *empty_frame(const window *w) {
    for (size_t i = 0; i < w->space.nframes; i++)
        if (w->frames[i].state == EMPTY)
            return &w->frames[i];
    return NULL;
}

static void note_recent(window *w, size_t block) {
    size_t i = 0;
    while (i < CCMEM_WINDOW_BLOCKS - 1 && w->recent[i] != block)
        i++;
    memmove(w->recent + 1, w->recent, i * sizeof *w->recent);
    w->recent[0] = block;
}

/* May be taken from those who use it. */
static int evictable(const window *w, const frame *f) {
    for (size_t i = 0; i < CCMEM_WINDOW_BLOCKS; i++)
        if (w->recent[i] == f->block)
            return 0;
    return !f->pins && f->state > OPENING;
}

/* The block that the stream left behind last, but for the one before its last: it may still be in
 * use. */
static frame *left_behind(const window *w, const stream *s) {
    const size_t far = 2 * w->ahead + BEHIND;
    if (!s || !s->run)
        return NULL;
    for (size_t back = 2; back <= far && back <= s->last; back++) {
        frame *f = frame_of(w, s->last - back);
        if (f && f->state == PLACED && evictable(w, f))
            return f;
    }
    return NULL;
}

static int expected(const window *w, const frame *f) {
    for (int i = 0; i < STREAMS; i++) {
        const stream *s = &w->streams[i];
        if (s->run && f->block >= s->last && f->block < s->end)
            return 1;
    }
    return 0;
}

/* The one that has been there longest; of those that a stream is coming to, only with `force`. */
static frame *oldest(const window *w, int force) {
    frame *found = NULL;
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (!evictable(w, f) || (found && f->order >= found->order))
            continue;
        if (force || !expected(w, f))
            found = f;
    }
    return found;
}

/* Its thread was just woken, and may not have got to run yet. One that answers for itself goes on
 * at once. */
static int in_grace(const window *w, const frame *f) {
    return f->state == PLACED && !w->ops->waits && now() - f->since < GRACE_NS;
}

/* A frame to be filled at once; *reused tells whether it holds what it held. For a block that is
 * wanted now with `wanted`, else only one that nobody needs. NULL when there is none: *status is
 * why, and CCMEM_OK when there may be one in a moment. */
static frame *acquire(window *w, const stream *s, int wanted, int *reused, ccmem_status *status) {
    *status = CCMEM_OK;
    frame *f = empty_frame(w);
    *reused = !f;
    if (f)
        return f;
    f = left_behind(w, s);
    if (f && evict(w, f, status))
        return f;
    for (size_t tries = 0; tries < w->space.nframes && *status == CCMEM_OK; tries++) {
        f = oldest(w, 0);
        if (!f && wanted)
            f = oldest(w, 1);
        if (!f || in_grace(w, f))
            break;
        if (evict(w, f, status))
            return f;
        f->order = ++w->clock; /* the kernel holds it: others first */
    }
    return NULL;
}

/* Waits for a frame to change its state, or a moment. */
static void await_change(window *w) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += GRACE_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    (void)pthread_cond_timedwait(&w->changed, &w->lock, &until);
}

/* Has the block in a frame, OPENED or PLACED, for a caller that waits; NULL on failure, and when
 * the window is being closed (CCMEM_ERR_ARGUMENT). */
static frame *have_block(window *w, const stream *s, size_t block, int alone,
                         ccmem_status *status) {
    uint64_t since = 0; /* its clock costs more than a block that is there */
    int reused;
    for (int waits = 0; !w->closing && (waits < BUSY_WAITS || patient(waits, since)); waits++) {
        frame *f = frame_of(w, block);
        *status = CCMEM_OK;
        note_recent(w, block); /* again, after others: a frame must be left for it */
        if (f && f->state >= OPENED)
            return f;
        if (!f && (f = acquire(w, s, 1, &reused, status))) {
            *status = open_block(w, block, f, reused, alone);
            return *status == CCMEM_OK ? f : NULL;
        }
        if (*status != CCMEM_OK)
            return NULL;
        /* Another thread is opening it. One that would only wait opens the next one meanwhile. */
        if (!(w->ops->waits && s && open_ahead(w)))
            await_change(w);
        if (!since)
            since = now();
    }
    *status = w->closing ? CCMEM_ERR_ARGUMENT : CCMEM_ERR_NOMEM;
    return NULL;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Wipes what it can reach. A block whose parts are here and there is lost to every reader, too. */
static void take_away(window *w) {
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (f->state <= OPENING) /* what is being opened is not verified, and its opener wipes it */
            continue;
        int done = f->state != PLACED;
        if (!done)
            done = w->ops->take(w->mechanism, f->block, i, f->written);
        if (done > 0)
            ccmem_wipe(frame_at(w, f), w->space.block);
        else if (!done)
            wipe_placed(w, f);
    }
}

/* Of a window whose lock is held. A fault has nobody to return an error to, and going on would hand
 * out what nobody stored. */
static void die(window *w, size_t block, ccmem_status status) {
    char text[1024];
    int n;
    ccmem_failure failure = ccmem_last_failure();
    const char *file =
        status == CCMEM_ERR_INTEGRITY ? ccmem_store_lost(w->store, failure.page) : NULL;
    if (__atomic_exchange_n(&dying, 1, __ATOMIC_SEQ_CST))
        for (;;) /* another thread says why, and ends the process */
            wait_ns(BUSY_WAIT_NS);
    the_dying = pthread_self();
    __atomic_store_n(&dying, 2, __ATOMIC_SEQ_CST);
    fault_hurry();
    if (file)
        n = snprintf(
            text, sizeof text,
            "pyccmem: page %llu of '%s' was touched through a mapping and could not be had "
            "from the file '%.400s': it was cut short while it was open, or its file system "
            "failed. A touch has no caller to tell, so all windows were wiped and this "
            "process ends.\n",
            (unsigned long long)failure.page, w->name, file);
    else if (status == CCMEM_ERR_INTEGRITY)
        n = snprintf(
            text, sizeof text,
            "pyccmem: page %llu of '%s' was touched through a mapping and does not match its "
            "tag: it was changed since it was written. A touch has no caller to tell, so all "
            "windows were wiped and this process ends; verify() names the changed pages.\n",
            (unsigned long long)failure.page, w->name);
    else if (status == CCMEM_ERR_READONLY)
        n = snprintf(text, sizeof text,
                     "pyccmem: a write to the read-only mapping of '%s' (mode 'r'). A touch has no "
                     "caller to tell, so all windows were wiped and this process ends.\n",
                     w->name);
    else
        n = snprintf(
            text, sizeof text,
            "pyccmem: block %zu of a mapping of '%s' cannot be opened or sealed (%s). A touch "
            "has no caller to tell, so all windows were wiped and this process ends.\n",
            block, w->name, ccmem_status_text(status));
    for (int i = 0; file && i < n - 1 && i < (int)sizeof text - 1; i++)
        if ((unsigned char)text[i] < 32 || text[i] == 127) /* a file may have any name */
            text[i] = '?';
    take_away(w);
    /* Others' locks may be held for as long as a block takes; nobody waits for them for ever. */
    for (window *other = windows; other; other = other->next)
        if (other != w && other->mechanism) {
            for (int i = 0; i < 100 && pthread_mutex_trylock(&other->lock); i++)
                wait_ns(BUSY_WAIT_NS);
            take_away(other);
        }
    if (n > (int)sizeof text - 1)
        n = (int)sizeof text - 1;
    (void)!write(STDERR_FILENO, text, n > 0 ? (size_t)n : 0);
    abort();
}

/* ---- faults ---------------------------------------------------------------------------------- */

/* The stream that a fault of this block belongs to, or the beginning of one. */
static stream *note_fault(window *w, size_t block) {
    stream *s = w->streams;
    for (int i = 0; i < STREAMS; i++) {
        stream *t = &w->streams[i];
        if (t->order && block == t->last)
            return t;
        if (t->order && block > t->last && block <= t->end) {
            t->last = block;
            t->end = block < t->end ? t->end : block + 1;
            t->run++;
            t->order = ++w->clock;
            return t;
        }
        if (t->order < s->order)
            s = t;
    }
    *s = (stream){.last = block, .end = block + 1, .order = ++w->clock};
    return s;
}

/* A touch of a block that is placed. */
static int touch_placed(window *w, frame *f, int write) {
    if (write && !w->writable) {
        if (w->ops->waits)
            return 0;
        die(w, f->block,
            CCMEM_ERR_READONLY); /* its thread waits for an answer, and there is none */
    }
    if (w->ops->tracks && write && !f->written) {
        if (!w->ops->allow(w->mechanism, f->block))
            die(w, f->block, CCMEM_ERR_NOMEM);
        f->written = 1;
    }
    note_recent(w, f->block);
    if (!w->ops->wake(w->mechanism, f->block))
        die(w, f->block, CCMEM_ERR_FAULT);
    return 1;
}

static int answer(window *w, size_t block, int write) {
    frame *f = frame_of(w, block);
    ccmem_status status;
    if (f && f->state == PLACED)
        return touch_placed(w, f, write);
    COUNT(w, faults);
    stream *s = note_fault(w, block);
    if (s->run)
        w->ops->poke(w->mechanism);
    if (f && f->state == OPENING && !w->ops->waits) {
        note_recent(w, block);
        w->waiting += !f->wanted;
        f->wanted |= 1 + write; /* whoever opens it places it, too */
        return 1;
    }
    f = have_block(w, s, block, w->ops->waits || s->run, &status);
    if (!f) {
        if (status == CCMEM_ERR_ARGUMENT)
            return 0;
        die(w, block, status);
    }
    if (f->state == PLACED) /* by another thread, while this one waited */
        return touch_placed(w, f, write);
    if (!insist(w, place, f, write || (f->wanted & 2)))
        die(w, block, CCMEM_ERR_NOMEM);
    pthread_cond_broadcast(&w->changed);
    return 1;
}

static int on_fault(void *self, size_t offset, int write) {
    window *w = self;
    int done = 0;
    if (fork_alien(w->generation) || (__atomic_load_n(&dying, __ATOMIC_SEQ_CST) == 2 &&
                                      pthread_equal(the_dying, pthread_self())))
        return 0;
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing && offset < w->space.nblocks * w->space.block)
        done = answer(w, offset / w->space.block, write);
    pthread_mutex_unlock(&w->lock);
    return done;
}

/* Opens the next block ahead of the stream that faulted last. */
static int open_ahead(window *w) {
    stream *s = &w->streams[0];
    ccmem_status status;
    int reused;
    for (int i = 1; i < STREAMS; i++)
        if (w->streams[i].order > s->order)
            s = &w->streams[i];
    if (!s->run || !w->ahead)
        return 0;
    while (s->end < w->space.nblocks && s->end <= s->last + w->ahead && frame_of(w, s->end))
        s->end++;
    if (s->end >= w->space.nblocks || s->end > s->last + w->ahead)
        return 0;
    size_t block = s->end;
    frame *f = acquire(w, s, 0, &reused, &status);
    if (!f)
        return 0;
    s->end++;
    COUNT(w, read_ahead);
    status = open_block(w, block, f, reused, 1);
    if (status != CCMEM_OK) {
        s->run = 0; /* whoever touches it will be told */
        return 0;
    }
    if (f->wanted) {
        if (!insist(w, place, f, f->wanted & 2))
            die(w, block, CCMEM_ERR_NOMEM);
    } else if (block % w->stride) {
        (void)place(w, f, 0); /* else its fault places it */
    }
    return 1;
}

static int on_idle(void *self, int spare) {
    window *w = self;
    int done = 0;
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing && (spare || w->waiting))
        done = open_ahead(w);
    pthread_mutex_unlock(&w->lock);
    return done;
}

static void on_broken(void *self) {
    window *w = self;
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing)
        die(w, 0, CCMEM_ERR_FAULT);
    pthread_mutex_unlock(&w->lock);
}

/* ---- calls ----------------------------------------------------------------------------------- */

static ccmem_status lock_open(window *w) {
    if (fork_alien(w->generation))
        return CCMEM_ERR_FORK;
    if (w->ops->waits)
        (void)signals_lead(); /* before this thread or another touches what it is about */
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing)
        return CCMEM_OK;
    pthread_mutex_unlock(&w->lock);
    return CCMEM_ERR_ARGUMENT;
}

ccmem_status window_prefault(window *w, size_t first, size_t last) {
    ccmem_status status = lock_open(w);
    if (status != CCMEM_OK)
        return status;
    if (w->space.nframes < w->space.nblocks) {
        /* Of the least window, all that is not pinned: there is always some. */
        size_t free = w->space.nframes - w->pinned;
        size_t most = free > WINDOW_SPARE ? free - WINDOW_SPARE : free;
        if (last - first >= most)
            last = first + most - 1;
    }
    for (size_t b = first; b <= last && status == CCMEM_OK; b++) {
        frame *f = have_block(w, NULL, b, 0, &status);
        if (f && f->state != PLACED && !insist(w, place, f, 0))
            status = CCMEM_ERR_NOMEM;
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

static void unpin(window *w, size_t first, size_t last) {
    for (size_t b = first; b <= last; b++) {
        frame *f = frame_of(w, b);
        if (f && f->pins && !--f->pins)
            w->pinned--;
    }
}

/* Places the block for every access that the window allows. */
static ccmem_status pin_block(window *w, size_t block) {
    ccmem_status status;
    frame *f = have_block(w, NULL, block, 0, &status);
    if (!f)
        return status;
    if (f->state != PLACED && !insist(w, place, f, w->writable))
        return CCMEM_ERR_NOMEM;
    if (w->writable && !f->written) {
        if (w->ops->tracks && !w->ops->allow(w->mechanism, block))
            return CCMEM_ERR_NOMEM;
        f->written = 1;
    }
    if (!f->pins++)
        w->pinned++;
    return CCMEM_OK;
}

ccmem_status window_pin(window *w, size_t first, size_t last) {
    ccmem_status status = lock_open(w);
    if (status != CCMEM_OK)
        return status;
    size_t spare = w->space.nframes < w->space.nblocks ? WINDOW_SPARE : 0, fresh = 0;
    for (size_t b = first; b <= last && fresh <= w->space.nframes; b++) {
        frame *f = frame_of(w, b);
        fresh += !f || !f->pins;
    }
    if (w->pinned + fresh + spare > w->space.nframes)
        status = CCMEM_ERR_PINNED;
    for (size_t b = first; b <= last && status == CCMEM_OK; b++) {
        status = pin_block(w, b);
        if (status != CCMEM_OK && b > first)
            unpin(w, first, b - 1);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

ccmem_status window_unpin(window *w, size_t first, size_t last) {
    ccmem_status status = lock_open(w);
    if (status != CCMEM_OK)
        return status;
    unpin(w, first, last);
    pthread_mutex_unlock(&w->lock);
    return CCMEM_OK;
}

/* Seals a block and leaves it where it is. */
static ccmem_status flush_frame(window *w, frame *f) {
    /* A pinned one may be in a system call's hands, and must not be away for a moment. */
    const int placed = f->state == PLACED, stays = placed && (f->pins || !take(w, f, 0));
    ccmem_status status = seal(w, f->block, stays ? block_at(w, f->block) : frame_at(w, f));
    if (!stays) {
        f->written = status != CCMEM_OK;
        if (placed && !insist(w, place, f, f->written))
            die(w, f->block, CCMEM_ERR_NOMEM);
    }
    return status;
}

ccmem_status window_flush(window *w) {
    ccmem_status status = lock_open(w);
    if (status != CCMEM_OK)
        return status;
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (f->state <= OPENING || !f->written)
            continue;
        ccmem_status sealed = flush_frame(w, f);
        if (status == CCMEM_OK)
            status = sealed;
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* The frame ends wiped, and its block at rest, if that can be. */
static ccmem_status put_to_rest(window *w, frame *f) {
    ccmem_status status = CCMEM_OK;
    /* If the kernel still holds it, it is sealed and wiped where it is. */
    int taken = insist(w, take, f, 0);
    uint8_t *data = taken ? frame_at(w, f) : block_at(w, f->block);
    if (f->written)
        status = seal(w, f->block, data);
    if (taken)
        ccmem_wipe(data, w->space.block);
    else
        wipe_placed(w, f);
    hide(w);
    w->where[f->block] = NONE;
    f->state = EMPTY;
    return status;
}

static void in_child(void) {
    for (window *w = windows; w; w = w->next)
        fault_reserve_in_child(&w->space);
    windows = NULL;
    pthread_mutex_init(&windows_lock, NULL);
    ranges_forget();
    totals = (ccmem_region_stats){0};
}

static void register_in_child(void) { (void)pthread_atfork(NULL, NULL, in_child); }

static int conflict(const window *a, const window *b) {
    return a->store == b->store && (a->writable || b->writable) && a->from < b->to &&
           b->from < a->to;
}

static ccmem_status enter(window *w) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ccmem_status status = CCMEM_OK;
    pthread_once(&once, register_in_child);
    pthread_mutex_lock(&windows_lock);
    for (const window *other = windows; other; other = other->next)
        if (conflict(w, other))
            status = CCMEM_ERR_MAPPED;
    if (status == CCMEM_OK) {
        w->next = windows;
        if (windows)
            windows->previous = w;
        windows = w;
    }
    pthread_mutex_unlock(&windows_lock);
    return status;
}

static void leave(window *w) {
    pthread_mutex_lock(&windows_lock);
    if (w->previous)
        w->previous->next = w->next;
    else
        windows = w->next;
    if (w->next)
        w->next->previous = w->previous;
    pthread_mutex_unlock(&windows_lock);
}

ccmem_status window_close(window *w) {
    ccmem_status status = lock_open(w);
    if (status == CCMEM_ERR_ARGUMENT) /* closed before */
        return CCMEM_OK;
    if (status != CCMEM_OK)
        return status;
    w->closing = 1;
    for (size_t i = 0; i < w->space.nframes; i++)
        while (w->frames[i].state == OPENING)
            await_change(w);
    for (size_t i = 0; i < w->space.nframes; i++)
        if (w->frames[i].state != EMPTY) {
            ccmem_status rested = put_to_rest(w, &w->frames[i]);
            if (status == CCMEM_OK)
                status = rested;
        }
    fault_mechanism *m = w->mechanism;
    w->mechanism = NULL;
    pthread_mutex_unlock(&w->lock);
    ranges_leave(w->space.base);
    w->ops->close(m); /* its thread may be waiting for the lock */
    leave(w);
    budget_release((uint64_t)w->space.nframes * w->space.block);
    return status;
}

uint8_t *window_data(const window *w) { return w->space.base + (w->from - w->origin); }

ccmem_status window_get_stats(window *w, ccmem_region_stats *out) {
    if (fork_alien(w->generation))
        return CCMEM_ERR_FORK;
    pthread_mutex_lock(&w->lock);
    *out = w->count;
    pthread_mutex_unlock(&w->lock);
    return CCMEM_OK;
}

void ccmem_regions_get_stats(ccmem_region_stats *out) {
    *out =
        (ccmem_region_stats){.faults = __atomic_load_n(&totals.faults, __ATOMIC_RELAXED),
                             .fills = __atomic_load_n(&totals.fills, __ATOMIC_RELAXED),
                             .read_ahead = __atomic_load_n(&totals.read_ahead, __ATOMIC_RELAXED),
                             .evictions = __atomic_load_n(&totals.evictions, __ATOMIC_RELAXED),
                             .write_backs = __atomic_load_n(&totals.write_backs, __ATOMIC_RELAXED)};
}

/* ---- life ------------------------------------------------------------------------------------ */

static ccmem_status new_window(const window_options *o, size_t nblocks, window **out) {
    window *w = calloc(1, sizeof *w + strlen(o->name) + 1);
    if (!w)
        return CCMEM_ERR_NOMEM;
    strcpy(w->name, o->name);
    w->generation = fork_generation();
    w->store = o->store;
    w->origin = o->origin;
    w->from = o->from;
    w->to = o->to;
    w->ops = o->ops;
    w->writable = o->writable;
    w->ahead = o->nframes / 2 < AHEAD_MAX ? o->nframes / 2 : AHEAD_MAX;
    if (!o->read_ahead)
        w->ahead = 0;
    w->stride = w->ahead > 3 ? w->ahead / 2 : 1;
    w->frames = calloc(o->nframes, sizeof *w->frames);
    w->where = malloc(nblocks * sizeof *w->where);
    if (w->frames && w->where) {
        memset(w->where, 0xff, nblocks * sizeof *w->where);
        memset(w->recent, 0xff, sizeof w->recent);
        if (!pthread_mutex_init(&w->lock, NULL)) {
            if (!pthread_cond_init(&w->changed, NULL)) {
                *out = w;
                return CCMEM_OK;
            }
            pthread_mutex_destroy(&w->lock);
        }
    }
    free(w->frames);
    free(w->where);
    free(w);
    return CCMEM_ERR_NOMEM;
}

static void delete_window(window *w) {
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->frames);
    free(w->where);
    free(w);
}

ccmem_status window_new(const window_options *o, window **out) {
    size_t nblocks = (size_t)((o->to - o->origin + o->block - 1) / o->block);
    uint64_t nbytes = (uint64_t)o->nframes * o->block;
    const int number = errno;
    window *w;
    lost_guard(); /* not in the handler of a touch: it may start a thread */
    if (o->nframes >= NONE || nblocks > SIZE_MAX / sizeof *w->where)
        return CCMEM_ERR_NOMEM;
    ccmem_status status = new_window(o, nblocks, &w);
    if (status != CCMEM_OK)
        return status;
    status = enter(w);
    if (status != CCMEM_OK) {
        delete_window(w);
        return status;
    }
    status = budget_reserve(nbytes);
    if (status == CCMEM_OK) {
        const fault_owner owner = {.fault = on_fault,
                                   .idle = on_idle,
                                   .broken = on_broken,
                                   .self = w};
        /* Its threads may ask before `mechanism` is known: under the lock they wait. */
        pthread_mutex_lock(&w->lock);
        status = o->ops->open(&owner, o->block, nblocks, o->nframes, o->writable, &w->mechanism);
        if (status == CCMEM_OK) {
            w->space = w->mechanism->space;
            w->count.window = nbytes;
            w->count.block = o->block;
            w->count.kernel_faults = w->mechanism->system_calls;
            if (!ranges_enter(w->space.base, w->space.nblocks * w->space.block))
                status = CCMEM_ERR_NOMEM;
        }
        pthread_mutex_unlock(&w->lock);
        if (status != CCMEM_OK && w->mechanism) {
            w->ops->close(w->mechanism);
            fault_release(&w->space);
        }
        if (status != CCMEM_OK)
            budget_release(nbytes);
    }
    if (status != CCMEM_OK) {
        int failed = errno;
        leave(w);
        delete_window(w);
        errno = failed;
        return status;
    }
    errno = number;
    *out = w;
    return CCMEM_OK;
}

void window_free(window *w) {
    if (!w)
        return;
    if (fork_alien(w->generation)) { /* its lock may be held by a thread that is not here */
        free(w->frames);
        free(w->where);
        free(w);
        return;
    }
    (void)window_close(w);
    fault_release(&w->space);
    delete_window(w);
}
