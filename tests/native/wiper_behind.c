/* SPDX-License-Identifier: Apache-2.0
 *
 * An allocator that lies behind wiper.c and checks it. A block lies alone between two pages that
 * fault and ends where the second begins, or at most an alignment before it. What else there is of
 * its pages is filled with a byte that must still be there when the block is given back; the block
 * itself must be zeros then. For one thread. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, SPARE = 0xC5, PLACES = 1 << 16, WRONG = 3 };

typedef struct block {
    char *start; /* NULL: a place that is not used */
    size_t size;
    char *pages;
    size_t length; /* of the pages, without those that fault */
} block;

static block blocks[PLACES];

/* Blocks of malloc() end exactly at the page that faults, and so begin anywhere. */
int behind_packed;
/* How many blocks were given back. */
unsigned long behind_given;

static void fail(const char *what) {
    (void)!write(2, what, strlen(what));
    (void)!write(2, "\n", 1);
    _exit(WRONG);
}

static block *place_of(const char *start) {
    size_t at = ((uintptr_t)start * 0x9E3779B97F4A7C15u) >> 48;
    for (unsigned tried = 0; tried < PLACES; tried++, at = (at + 1) % PLACES)
        if (blocks[at].start == start)
            return &blocks[at];
    return NULL;
}

static void *take(size_t alignment, size_t n) {
    const size_t length = (n + alignment + PAGE) / PAGE * PAGE;
    char *pages, *start;
    block *place;
    size_t at;
    if (n > (size_t)1 << 40)
        return NULL;
    pages =
        mmap(NULL, length + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return NULL;
    if (mprotect(pages, PAGE, PROT_NONE) || mprotect(pages + PAGE + length, PAGE, PROT_NONE))
        fail("no page that faults");
    pages += PAGE;
    start = (char *)((uintptr_t)(pages + length - n) & ~(uintptr_t)(alignment - 1));
    memset(pages, SPARE, (size_t)(start - pages));
    memset(start + n, SPARE, (size_t)(pages + length - start - n));
    at = ((uintptr_t)start * 0x9E3779B97F4A7C15u) >> 48;
    for (unsigned tried = 0; tried < PLACES && blocks[at].start; tried++)
        at = (at + 1) % PLACES;
    place = &blocks[at];
    if (place->start)
        fail("too many blocks");
    *place = (block){start, n, pages, length};
    return start;
}

static void all(const char *from, const char *to, int value, const char *what) {
    for (; from < to; from++)
        if (*from != (char)value)
            fail(what);
}

static void give(char *start, int wiped) {
    block *place = place_of(start), *next;
    if (!place)
        fail("a block that is none");
    if (wiped)
        all(start, start + place->size, 0, "a block was given back with something in it");
    all(place->pages, start, SPARE, "before a block something was changed");
    all(start + place->size, place->pages + place->length, SPARE, "behind a block");
    munmap(place->pages - PAGE, place->length + 2 * PAGE);
    behind_given++;
    place->start = NULL;
    /* What has come to lie behind it in the table is entered anew. */
    for (size_t at = (size_t)(place - blocks + 1) % PLACES; blocks[at].start;
         at = (at + 1) % PLACES) {
        const block moved = blocks[at];
        size_t to = ((uintptr_t)moved.start * 0x9E3779B97F4A7C15u) >> 48;
        blocks[at].start = NULL;
        while (blocks[to].start)
            to = (to + 1) % PLACES;
        next = &blocks[to];
        *next = moved;
    }
}

void *malloc(size_t n) { return take(behind_packed ? 1 : 16, n); }

void free(void *p) {
    if (p)
        give(p, 1);
}

void *calloc(size_t count, size_t size) {
    size_t n;
    return __builtin_mul_overflow(count, size, &n) ? NULL : malloc(n); /* pages are zeros */
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    void *p = take(alignment, n);
    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

void *aligned_alloc(size_t alignment, size_t n) { return take(alignment, n); }

void *memalign(size_t alignment, size_t n) { return take(alignment, n); }

/* The wiper gives only what it has wiped, and no size, or nothing. */
void *realloc(void *p, size_t n) {
    if (!p)
        return malloc(n);
    if (n)
        fail("the wiper moves blocks itself");
    give(p, 1); /* not by free(), which is the wiper's from here too */
    return NULL;
}

size_t malloc_usable_size(void *p) {
    block *place = p ? place_of(p) : NULL;
    return place ? place->size : 0;
}
