/* SPDX-License-Identifier: Apache-2.0
 * A library to be preloaded: overwrites each block before free() and realloc() give it back,
 * whoever has malloc(), and closes the process to dumps and readers when it starts.
 *
 * `pyccmem run` names it in LD_PRELOAD. Against glibc's M_PERTURB it also reaches blocks that
 * threads keep for themselves and the last bytes of each, and it fills nothing when memory is
 * taken. Loaded in another way it interposes nothing; then Python uses ccmem_wipe_numpy() of it
 * alone.
 *
 * In a block's way out lie no locks and no system calls. What glibc has mapped for a single block
 * is not overwritten: it is unmapped at once, and to touch it could take memory that was never
 * used. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define RARELY(x) __builtin_expect(!!(x), 0)

/* Blocks of posix_memalign() from this size on are overwritten past the caches. They are PyTorch's
 * tensors: all its threads write to one, and the thread that frees it would take every line of it
 * into its own cache, for the others to fetch there when the block is used again. (Zen 4, two
 * threads: a prompt took 1.07 of its plain time with usual stores and 0.98 with these.) Other
 * blocks are mostly written by the thread that frees them: arrays of 2 MiB took 1.5 with these
 * stores and 1.07 without. So that free() can tell them apart, the former get a size that no others
 * have but by chance: this one modulo 4,096, which glibc gives as it is asked for. */
enum { SHARED_FROM = 256 << 10, SHARED_SIZE = 0xa8 };

typedef void *(*malloc_function)(size_t);
typedef void (*free_function)(void *);
typedef void *(*realloc_function)(void *, size_t);
typedef size_t (*size_function)(void *);
typedef int (*aligned_function)(void **, size_t, size_t);

/* The allocator behind this library. `size` is NULL where it does not tell a block's size. */
static struct {
    free_function free;
    malloc_function malloc;
    realloc_function realloc;
    aligned_function aligned;
    size_function size;
    int glibc;
} next;

static int ready;                                                         /* `next` is complete */
static __thread int resolving __attribute__((tls_model("initial-exec"))); /* by this thread */

/* ---- overwriting --------------------------------------------------------------------------- */

static void past_caches(void *p, size_t n) {
#if defined(__SSE2__)
    const size_t lead = -(uintptr_t)p & 15;
    char *at = (char *)p + lead;
    memset(p, 0, lead);
    n -= lead;
    for (size_t i = 0; i + 16 <= n; i += 16)
        _mm_stream_si128((__m128i *)(at + i), _mm_setzero_si128());
    memset(at + (n & ~(size_t)15), 0, n & 15);
    _mm_sfence();
#else
    memset(p, 0, n);
#endif
}

static inline void overwrite(void *p, size_t n) {
#if defined(__SSE2__)
    if (n >= 16 && n <= 128) { /* most of what Python frees */
        for (size_t i = 0; i + 16 <= n; i += 16) {
            _mm_storeu_si128((__m128i *)((char *)p + i), _mm_setzero_si128());
            __asm__ volatile("" : : : "memory"); /* or gcc makes it a slower `rep stos` */
        }
        _mm_storeu_si128((__m128i *)((char *)p + n - 16), _mm_setzero_si128());
    } else
#endif
        if (RARELY(n >= SHARED_FROM && n % 4096 == SHARED_SIZE))
        past_caches(p, n);
    else
        memset(p, 0, n);
    __asm__ volatile("" : : "r"(p) : "memory"); /* the stores stay, though nobody reads them */
}

/* The word before a block of glibc: the size of its chunk, and in bit 1 whether the chunk is mapped
 * for itself (malloc.c, IS_MMAPPED). resolve() tries out whether it is so. */
static inline size_t head_of(const void *p) { return ((const size_t *)p)[-1]; }

static inline int mapped(const void *p) { return next.glibc && (head_of(p) & 2); }

/* How many bytes of a block may be written to. A chunk of glibc reaches into the next one's first
 * word, and begins with its own head. */
static inline size_t size_of(void *p) {
    return next.glibc ? (head_of(p) & ~(size_t)7) - sizeof(size_t) : next.size(p);
}

/* ---- the allocator behind ------------------------------------------------------------------ */

static int in_one_library(const void *a, const void *b) {
    Dl_info of_a, of_b;
    return dladdr(a, &of_a) && dladdr(b, &of_b) && of_a.dli_fbase == of_b.dli_fbase;
}

static int is_glibc(void) {
    Dl_info place;
    const char *name;
    if (!dlsym(RTLD_NEXT, "gnu_get_libc_version") || !dladdr((void *)next.free, &place))
        return 0;
    name = strrchr(place.dli_fname, '/');
    name = name ? name + 1 : place.dli_fname;
    return !strncmp(name, "libc.so", 7) || !strncmp(name, "libc-", 5);
}

/* True when heads of blocks are as head_of() says. */
static int heads_are_right(void) {
    void *large = next.malloc((size_t)64 << 20);
    int right = large && (head_of(large) & 2);
    next.free(large);
    for (size_t n = 1; n < 5000; n = n * 2 + 1) {
        void *p = next.malloc(n);
        right = right && p && !(head_of(p) & 2) &&
                (head_of(p) & ~(size_t)7) - sizeof(size_t) == next.size(p);
        next.free(p);
    }
    return right;
}

static void resolve(void) {
    const int before = errno;
    resolving = 1;
    next.malloc = (malloc_function)dlsym(RTLD_NEXT, "malloc");
    next.realloc = (realloc_function)dlsym(RTLD_NEXT, "realloc");
    next.size = (size_function)dlsym(RTLD_NEXT, "malloc_usable_size");
    next.free = (free_function)dlsym(RTLD_NEXT, "free");
    next.aligned = (aligned_function)dlsym(RTLD_NEXT, "posix_memalign");
    if (!next.malloc || !next.realloc || !next.aligned || !next.free)
        abort();
    if (next.size && !in_one_library((void *)next.size, (void *)next.free))
        next.size = NULL;
    next.glibc = next.size && is_glibc() && heads_are_right();
    __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    resolving = 0;
    errno = before;
}

/* Returns 0 while dlsym() itself asks. */
static inline int can_go_on(void) {
    if (RARELY(!__atomic_load_n(&ready, __ATOMIC_ACQUIRE))) {
        if (resolving)
            return 0;
        resolve();
    }
    return 1;
}

/* ---- forks --------------------------------------------------------------------------------- */

/* Smaller blocks are left to a forked child: each advised block can cost two more mappings, of
 * which a process may have 65,530. */
enum { FORK_FROM = 128 << 10 };

static int fork_wipes; /* blocks of data are to read as zeros in a forked child */

/* Advises the whole pages of a block, in which no allocator keeps anything of its own. That it can
 * fail, for lack of mappings, is seen by looking at what a block has got (process.py). */
static void advise(void *p, size_t n, int advice) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const uintptr_t start = ((uintptr_t)p + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)p + n) & ~(page - 1);
    const int before = errno;
    if (start < end)
        madvise((void *)start, end - start, advice);
    errno = before;
}

static inline void *data_taken(void *p, size_t n) {
    if (RARELY(n >= FORK_FROM) && fork_wipes && p)
        advise(p, n, MADV_WIPEONFORK);
    return p;
}

/* The pages will be anybody's: a child that goes on in Python needs its own objects. */
static inline void data_given(void *p, size_t n) {
    if (RARELY(n >= FORK_FROM) && fork_wipes)
        advise(p, n, MADV_KEEPONFORK);
}

/* Lets blocks of data that are taken from now on be wiped in a forked child, or not. */
EXPORT void ccmem_wipe_on_fork(int wanted) { fork_wipes |= wanted; }

/* ---- what is interposed -------------------------------------------------------------------- */

/* The address of this library's own: by the name alone another library's may be meant. */
static void own_free(void *p) __attribute__((alias("free")));

EXPORT void free(void *p) {
    if (!p || RARELY(!can_go_on())) /* what dlsym() frees before free() is known is kept */
        return;
    if (next.size && !mapped(p)) {
        const size_t n = size_of(p);
        overwrite(p, n);
        data_given(p, n);
    }
    next.free(p);
}

/* PyTorch's tensors come from here. Those of malloc() may be Python's own tables, without which a
 * forked child dies. */
EXPORT int posix_memalign(void **out, size_t alignment, size_t n) {
    size_t taken = n;
    int status;
    if (RARELY(!can_go_on()))
        return ENOMEM;
    if (n >= SHARED_FROM && n < PTRDIFF_MAX / 2)
        taken = ((n + 4095) & ~(size_t)4095) + SHARED_SIZE;
    status = next.aligned(out, alignment, taken);
    if (!status)
        data_taken(*out, n);
    return status;
}

/* C23's; a C library that has them would go past free(). */
EXPORT void free_sized(void *p, size_t n) {
    (void)n;
    own_free(p);
}

EXPORT void free_aligned_sized(void *p, size_t alignment, size_t n) {
    (void)alignment;
    (void)n;
    own_free(p);
}

EXPORT void *realloc(void *p, size_t n) {
    size_t old;
    void *moved;
    if (RARELY(!can_go_on())) {
        errno = ENOMEM;
        return NULL;
    }
    /* A block mapped for itself is moved by its pages, or unmapped. */
    if (!p || !next.size || mapped(p))
        return next.realloc(p, n);
    old = size_of(p);
    data_given(p, old);
    if (n == 0) {
        overwrite(p, old);
        return next.realloc(p, n);
    }
    if (n <= old && next.glibc) { /* which makes a block smaller where it is, and never fails */
        overwrite((char *)p + n, old - n);
        return next.realloc(p, n);
    }
    /* realloc() itself would give the old block back as it is. */
    moved = next.malloc(n);
    if (!moved)
        return NULL;
    memcpy(moved, p, n < old ? n : old);
    overwrite(p, old);
    next.free(p);
    return moved;
}

EXPORT void *reallocarray(void *p, size_t count, size_t size) {
    size_t n;
    if (__builtin_mul_overflow(count, size, &n)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(p, n);
}

/* ---- NumPy --------------------------------------------------------------------------------- */

/* PyDataMemAllocator and PyDataMem_Handler of NumPy (NEP 49, numpy/ndarraytypes.h), version 1. */
typedef struct {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *p, size_t new_size);
    void (*free)(void *context, void *p, size_t size);
} numpy_allocator;

typedef struct {
    char name[127];
    uint8_t version;
    numpy_allocator allocator;
} numpy_handler;

static struct {
    numpy_allocator own; /* NumPy's, to which all is handed on */
    size_function size;
    size_t below; /* what is freed of this size or more, the allocator overwrites */
} numpy;

static void *numpy_malloc(void *context, size_t n) {
    return data_taken(numpy.own.malloc(context, n), n);
}

static void *numpy_calloc(void *context, size_t count, size_t size) {
    /* NumPy has made sure that the product is a size. */
    return data_taken(numpy.own.calloc(context, count, size), count * size);
}

static void numpy_free(void *context, void *p, size_t size) {
    if (p && size < numpy.below)
        overwrite(p, size);
    if (p)
        data_given(p, size);
    numpy.own.free(context, p, size);
}

static void *numpy_realloc(void *context, void *p, size_t n) {
    void *moved;
    size_t old;
    if (!p)
        return numpy.own.realloc(context, p, n);
    old = numpy.size(p);
    moved = numpy_malloc(context, n);
    if (!moved)
        return NULL;
    memcpy(moved, p, n < old ? n : old);
    overwrite(p, old);
    data_given(p, old);
    /* NumPy keeps small blocks in lists by their size, which is not known here. */
    numpy.own.free(context, p, (size_t)1 << 20);
    return moved;
}

/* Lets a handler of NumPy overwrite blocks smaller than `below` when they are freed, also those
 * that were taken before. Returns 0; 1 for a handler of another kind; 2 where blocks do not tell
 * their sizes. The caller has made sure that the handler may be written to. */
EXPORT int ccmem_wipe_numpy(numpy_handler *handler, size_t below) {
    static const char ours[] = "default_allocator";
    size_function size = (size_function)dlsym(RTLD_DEFAULT, "malloc_usable_size");
    if (handler->version != 1 || memcmp(handler->name, ours, sizeof ours))
        return 1;
    if (!size)
        return 2;
    numpy.size = size;
    numpy.below = below;
    if (handler->allocator.free != numpy_free) {
        numpy.own = handler->allocator;
        __atomic_store_n(&handler->allocator.malloc, numpy_malloc, __ATOMIC_RELEASE);
        __atomic_store_n(&handler->allocator.calloc, numpy_calloc, __ATOMIC_RELEASE);
        __atomic_store_n(&handler->allocator.realloc, numpy_realloc, __ATOMIC_RELEASE);
        __atomic_store_n(&handler->allocator.free, numpy_free, __ATOMIC_RELEASE);
    }
    return 0;
}

/* ---- the process --------------------------------------------------------------------------- */

/* Returns 1 when freed blocks go through free() of this library, and tell their sizes. */
EXPORT int ccmem_wiper_is_first(void) {
    return can_go_on() && dlsym(RTLD_DEFAULT, "free") == (void *)own_free && next.size != NULL;
}

static int no_memory_in_dumps(void) {
    const int file = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
    int done;
    if (file < 0)
        return 0;
    done = write(file, "0", 1) == 1;
    return close(file) == 0 && done;
}

/* The limit of a dump: see forbid() of process.py. */
static rlim_t limit_of_dumps(void) {
    char first = 0;
    const int file = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    if (read(file, &first, 1) != 1)
        first = 0;
    close(file);
    return first == '|' || first == '@';
}

static int no_dumps(void) {
    struct rlimit limit;
    const rlim_t most = limit_of_dumps();
    if (getrlimit(RLIMIT_CORE, &limit))
        return 0;
    if (limit.rlim_max > most)
        limit.rlim_max = most;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_CORE, &limit) == 0;
}

/* PR_SET_DUMPABLE is lost with each exec: what `pyccmem run` starts, and what that starts, does
 * this for itself, whatever language it is written in. */
__attribute__((constructor)) static void close_process(void) {
    const char *options = getenv("PYCCMEM_GUARD");
    if (!options || !ccmem_wiper_is_first())
        return;
    fork_wipes = strstr(options, "fork=wipe") != NULL;
    if (strstr(options, "debuggable"))
        return;
    /* Before the process ceases to be dumpable, which makes root the owner of its files in /proc.
     */
    if (!no_memory_in_dumps())
        dprintf(2, "pyccmem: /proc/self/coredump_filter cannot be written: %m\n");
    if (!no_dumps())
        dprintf(2, "pyccmem: RLIMIT_CORE cannot be lowered: %m\n");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
        dprintf(2, "pyccmem: PR_SET_DUMPABLE failed: %m\n");
}
