/* SPDX-License-Identifier: Apache-2.0
 *
 * Drives wiper.c, which is linked in front, over sizes and addresses at the edges of its branches:
 * `checked` before wiper_behind.c, which does the checking, `glibc` before glibc. Ends with 0, or
 * with 3 and a line that says what was wrong. */
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    MARK = 0xA7,
    SPARE = 0xC5,
    WRONG = 3,
    SHARED_FROM = 256 << 10,
    SHARED_SIZE = 0xa8
};

extern int behind_packed __attribute__((weak));
extern unsigned long behind_given __attribute__((weak));

/* Of wiper.c. */
void free_sized(void *p, size_t n);
void free_aligned_sized(void *p, size_t alignment, size_t n);
void ccmem_wipe_on_fork(int wanted);
int ccmem_wipe_numpy(void *handler, size_t below);

static void check(int good, const char *what, size_t n) {
    if (good)
        return;
    fprintf(stderr, "%s, %zu bytes\n", what, n);
    _exit(WRONG);
}

/* Hides from the compiler where an address comes from: what was freed is looked at. */
static void *hidden(void *p) {
    __asm__ volatile("" : "+r"(p));
    return p;
}

static int all(const void *p, size_t n, int value) {
    const volatile unsigned char *at = hidden((void *)p);
    for (size_t i = 0; i < n; i++)
        if (at[i] != value)
            return 0;
    return 1;
}

static void *filled(void *p, size_t n) {
    check(p != NULL, "no block", n);
    return memset(hidden(p), MARK, n);
}

/* Calls `what` with each size at which a branch begins or ends, and with those beside it. */
static void each_size(void (*what)(size_t)) {
    static const size_t edges[] = {1032,      PAGE,        65536,
                                   128 << 10, SHARED_FROM, SHARED_FROM + SHARED_SIZE};
    static const ptrdiff_t beside[] = {-17, -16, -15, -1, 0, 1, 15, 16, 17};
    for (size_t n = 1; n < 300; n++)
        what(n);
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        for (size_t j = 0; j < sizeof beside / sizeof *beside; j++)
            what(edges[i] + (size_t)beside[j]);
}

/* ---- before wiper_behind.c ----------------------------------------------------------------- */

static void freed(size_t n) {
    void *p = NULL;
    free(filled(malloc(n), n));
    free_sized(filled(malloc(n), n), n);
    free(calloc(n, 1));
    for (size_t alignment = 16; alignment <= PAGE; alignment *= 16) {
        check(posix_memalign(&p, alignment, n) == 0, "no aligned block", n);
        free(filled(p, n));
        free_aligned_sized(filled(aligned_alloc(alignment, n), n), alignment, n);
    }
}

static void moved(size_t n) {
    const size_t others[] = {1, 15, 16, 17, n - 1, n, n + 1, 2 * n};
    const size_t first = n > 1 << 20 ? 4 : 0; /* large ones take long */
    for (size_t i = first; i < sizeof others / sizeof *others; i++) {
        const size_t other = others[i] ? others[i] : 1;
        char *q = realloc(filled(malloc(n), n), other);
        check(q && all(q, n < other ? n : other, MARK), "realloc() lost something", n);
        free(q);
    }
    check(realloc(filled(malloc(n), n), 0) == NULL, "realloc() of nothing", n);
    free(reallocarray(filled(malloc(n), n), n, 3));
    char *kept = filled(malloc(n), n);
    errno = 0;
    check(reallocarray(kept, (size_t)hidden((void *)(SIZE_MAX / 2)), 3) == NULL && errno == ENOMEM,
          "an overflow", n);
    check(realloc(kept, SIZE_MAX / 2) == NULL && all(kept, n, MARK), "no memory", n);
    free(kept);
}

/* A forked child finds zeros in whole pages of a block, and its neighbours in the same pages. */
static void forked(size_t n) {
    void *p = NULL;
    int status;
    check(posix_memalign(&p, 16, n) == 0, "no aligned block", n);
    filled(p, n);
    char *first = (char *)(((uintptr_t)p + PAGE - 1) & -(uintptr_t)PAGE);
    char *last = (char *)(((uintptr_t)p + n) & -(uintptr_t)PAGE);
    const size_t before = (size_t)(first - (char *)p);
    const pid_t child = fork();
    if (!child)
        _exit(!(all(p, before, MARK) && all((char *)p - 1, 1, SPARE) &&
                all(first, (size_t)(last - first), 0) &&
                all(last, n - before - (size_t)(last - first), MARK)));
    check(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a forked child", n);
    free(p);
}

/* PyDataMem_Handler of NumPy, version 1 (numpy/ndarraytypes.h). */
typedef struct {
    char name[127];
    uint8_t version;
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
} numpy_handler;

static const size_t below = 1024;
static unsigned looked_at;

static void *own_malloc(void *context, size_t n) { return (void)context, malloc(n); }
static void *own_calloc(void *context, size_t n, size_t size) {
    return (void)context, calloc(n, size);
}
static void *own_realloc(void *context, void *p, size_t n) { return (void)context, realloc(p, n); }

/* What the handler wipes is zeros here already; the rest it leaves to free(). */
static void own_free(void *context, void *p, size_t size) {
    const size_t n = malloc_usable_size(p);
    (void)context;
    check(all(p, n, size < below || size != n ? 0 : MARK), "NumPy's handler", n);
    looked_at++;
    free(p);
}

static void of_numpy(void) {
    numpy_handler handler = {"default_allocator", 2,           NULL,    own_malloc,
                             own_calloc,          own_realloc, own_free};
    check(ccmem_wipe_numpy(&handler, below) == 1 && handler.free == own_free, "a version", 2);
    handler.version = 1;
    handler.name[16] = 's';
    check(ccmem_wipe_numpy(&handler, below) == 1 && handler.free == own_free, "a name", 0);
    handler.name[16] = 'r';
    for (int times = 0; times < 2; times++) /* the second changes nothing */
        check(ccmem_wipe_numpy(&handler, below) == 0 && handler.free != own_free, "a handler", 0);
    for (size_t n = 1; n < 2 * below; n += n < 300 || (n >= 1000 && n < 1050) ? 1 : 50) {
        handler.free(NULL, filled(handler.malloc(NULL, n), n), n);
        handler.free(NULL, filled(handler.calloc(NULL, n, 1), n), n);
        char *q = handler.realloc(NULL, filled(handler.malloc(NULL, n), n), n + 7);
        check(q && all(q, n, MARK), "NumPy's realloc() lost something", n);
        handler.free(NULL, filled(q, n + 7), n + 7);
        q = handler.realloc(NULL, filled(handler.malloc(NULL, n), n), n / 2 + 1);
        check(q && all(q, n / 2 + 1, MARK), "NumPy's realloc() lost something", n);
        handler.free(NULL, filled(q, n / 2 + 1), n / 2 + 1);
    }
    handler.free(NULL, NULL, 8);
    check(looked_at > 1000, "NumPy's own free() was not called", looked_at);
}

static void checked(void) {
    const unsigned long before = behind_given;
    for (behind_packed = 0; behind_packed < 2; behind_packed++) {
        each_size(freed);
        each_size(moved);
        of_numpy();
    }
    behind_packed = 0;
    ccmem_wipe_on_fork(1);
    for (size_t n = 128 << 10; n < (128 << 10) + 3 * PAGE; n += PAGE / 4 + 1)
        forked(n);
    check(behind_given - before > 20000, "few blocks were given back", behind_given - before);
}

#ifdef __GLIBC__
/* ---- before glibc -------------------------------------------------------------------------- */

/* The words in which glibc keeps lists of free blocks: two for those of a thread, four for large
 * ones, and the last one, the size for the block behind. */
static void freed_of_glibc(size_t n) {
    unsigned char *p = malloc(n), *fence = malloc(24);
    const size_t usable = malloc_usable_size(p);
    const int of_a_thread = usable <= 1032;
    size_t *head = (size_t *)(p + usable);
    filled(p, usable);
    const size_t size = *head & ~(size_t)1; /* bit 0: whether the block before it is in use */
    free(p);
    const size_t from = of_a_thread ? 16 : 32, to = of_a_thread ? usable : usable - 8;
    if (to > from)
        check(all(p + from, to - from, 0), "a freed block has something in it", n);
    check((*(size_t *)hidden(head) & ~(size_t)1) == size, "the next block's head was changed", n);
    free(fence);
}

static void shrunk_of_glibc(size_t n) {
    for (size_t less = 1; less < n; less = less * 2 + 1) {
        unsigned char *p = malloc(n), *fence = malloc(24);
        filled(p, malloc_usable_size(p));
        unsigned char *q = realloc(p, less);
        check(q == hidden(p) && all(q, less, MARK), "a smaller block has moved or lost something",
              n);
        check(all(q + less, malloc_usable_size(q) - less, 0), "behind a smaller block", less);
        free(q);
        free(fence);
    }
}

static long faults(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_minflt;
}

/* A block that is mapped for itself: its pages are neither touched nor copied. */
static void mapped_of_glibc(void) {
    const size_t n = (size_t)64 << 20;
    const long before = faults();
    for (int times = 0; times < 8; times++) {
        char *p = malloc(n);
        check(p != NULL, "no block", n);
        p[0] = p[n - 1] = 1;
        p = realloc(p, 2 * n);
        check(p && p[0] == 1 && p[n - 1] == 1 && p[2 * n - 1] == 0, "a moved mapping", n);
        p = realloc(p, n + 5);
        check(p && p[0] == 1 && p[n - 1] == 1, "a smaller mapping", n);
        free(p);
    }
    check(faults() - before < 1000, "pages that nobody used were touched",
          (size_t)(faults() - before));
}

static void of_glibc(void) {
    free(malloc(1)); /* the library looks at glibc's blocks before these change */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    each_size(freed_of_glibc);
    each_size(shrunk_of_glibc);
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mapped_of_glibc();
}

#endif

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "checked") && &behind_given)
        checked();
#ifdef __GLIBC__
    else if (count == 2 && !strcmp(words[1], "glibc") && !&behind_given)
        of_glibc();
#endif
    else
        return 2;
    return 0;
}
