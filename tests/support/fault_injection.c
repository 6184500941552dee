/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls and allocations of the native module that fail when a test says so: a library to be
 * preloaded (LD_PRELOAD), which stands in front of the C library. tests/support/fault_injection.py
 * builds and drives it:
 *
 *     library = fault_injection.build(directory)
 *     support.run_python(script, environment=fault_injection.environment(library))
 *
 * and in the script
 *
 *     from fault_injection import Injector
 *     injector = Injector()
 *     with injector.counting() as calls: operation()     # how many points there are: calls.seen
 *     with injector.failing(n): operation()              # the n-th call fails, from 1 on
 *     with injector.failing(n, later=True): operation()  # and so do all after it
 *     injector.failing(n, kinds=["mmap", "ioctl"], error=errno.EBUSY, partial=True)
 *     injector.failing(n, kinds=["mprotect"], lie=True)  # and says that it was done
 *     injector.failed  # the name of the call that failed last, or None
 *     injector.held()  # blocks of the allocator and bytes mapped that the module has now
 *
 * Only calls that the native module itself makes are counted, whichever thread makes them: the test
 * is the address they return to. A call that fails is not made, but close(2) is, as in the kernel;
 * with `partial` half of what a UFFDIO_MOVE or UFFDIO_COPY is asked for is done first.
 *
 * Where the module waits for a refusal to pass, it waits by its clock: up to 10 seconds each time.
 * Once a call has failed and all later ones do, each look at the clock finds some milliseconds more
 * gone, so a test sees what comes after that time without spending it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFDIO_MOVE
struct uffdio_move {
    __u64 dst, src, len, mode;
    __s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

/* clang-format off */
#define KINDS(X) \
    X(mmap) X(munmap) X(mremap) X(mprotect) X(madvise) X(ioctl) X(poll) X(socketpair) X(send) \
    X(sendmsg) X(recvmsg) X(open) X(close) X(read) X(pread) X(write) X(fcntl) X(fstat) \
    X(ftruncate) X(syscall) X(getrandom) X(getrlimit) X(sigaction) X(sem_init) X(nanosleep) \
    X(sched_getaffinity) X(pthread_create) X(pthread_mutex_init) X(pthread_cond_init) \
    X(pthread_attr_init) X(__register_atfork) X(malloc) X(calloc) X(realloc) X(posix_memalign)
/* clang-format on */

#define AS_NUMBER(name) KIND_##name,
#define AS_TEXT(name) #name,
enum kind { KINDS(AS_NUMBER) KIND_COUNT };
static const char *const names[] = {KINDS(AS_TEXT) NULL};

static uintptr_t begin, end;            /* of the native module */
static int armed, later, partial, lies; /* armed: atomic */
static int error;                       /* errno of what fails; 0: one that fits */
static uint64_t kinds;                  /* a bit for each that counts */
static long first;                      /* the first call that fails; 0: none */
static long seen, failed;    /* atomic; calls that counted; 1 + the kind that failed last */
static int64_t ahead;        /* atomic; nanoseconds that the module's clock is ahead */
enum { LOOK_NS = 20000000 }; /* what it gains by a look while all calls fail */

/* ---- what Python calls ----------------------------------------------------------------------- */

static int find(struct dl_phdr_info *info, size_t size, void *path) {
    (void)size;
    if (!info->dlpi_name || strcmp(info->dlpi_name, path))
        return 0;
    begin = UINTPTR_MAX;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD)
            continue;
        uintptr_t from = info->dlpi_addr + p->p_vaddr, to = from + p->p_memsz;
        begin = from < begin ? from : begin;
        end = to > end ? to : end;
    }
    return 1;
}

/* Whose calls count. 0 when no such object is loaded. */
int fault_injection_module(const char *path) { return dl_iterate_phdr(find, (void *)path); }

const char *fault_injection_name(int kind) {
    return kind >= 0 && kind < KIND_COUNT ? names[kind] : NULL;
}

void fault_injection_arm(long nth, int all_later, uint64_t mask, int number, int in_part, int lie) {
    __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
    first = nth;
    later = all_later;
    kinds = mask;
    error = number;
    partial = in_part;
    lies = lie;
    __atomic_store_n(&seen, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&failed, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
}

void fault_injection_disarm(void) { __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST); }

long fault_injection_seen(void) { return __atomic_load_n(&seen, __ATOMIC_SEQ_CST); }

/* The kind that failed last, or -1. */
int fault_injection_failed(void) { return (int)__atomic_load_n(&failed, __ATOMIC_SEQ_CST) - 1; }

/* ---- the decision ---------------------------------------------------------------------------- */

static int fails(enum kind kind, const void *caller, int usual) {
    if (!__atomic_load_n(&armed, __ATOMIC_ACQUIRE) || (uintptr_t)caller < begin ||
        (uintptr_t)caller >= end || !(kinds >> kind & 1))
        return 0;
    long n = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (!first || n < first || (n > first && !later))
        return 0;
    __atomic_store_n(&failed, (long)kind + 1, __ATOMIC_SEQ_CST);
    errno = error ? error : usual;
    return 1;
}

#define FAILS(name, usual) fails(KIND_##name, __builtin_return_address(0), usual)

/* ---- what the native module has ------------------------------------------------------------- */

static long blocks, mapped; /* atomic; of the allocator; bytes of address space */

long fault_injection_blocks(void) { return __atomic_load_n(&blocks, __ATOMIC_SEQ_CST); }
long fault_injection_mapped(void) { return __atomic_load_n(&mapped, __ATOMIC_SEQ_CST); }

static int ours(const void *caller) {
    return (uintptr_t)caller >= begin && (uintptr_t)caller < end;
}

static void *counted(void *p, const void *caller) {
    if (p && ours(caller))
        __atomic_add_fetch(&blocks, 1, __ATOMIC_SEQ_CST);
    return p;
}

static void grow(long pages, size_t n, const void *caller) {
    const size_t unit = 4096;
    if (ours(caller))
        __atomic_add_fetch(&mapped, pages * (long)((n + unit - 1) & ~(unit - 1)), __ATOMIC_SEQ_CST);
}

/* ---- the C library's functions --------------------------------------------------------------- */

#define REAL(name) static __typeof__(name) *real_##name
REAL(mmap);
REAL(munmap);
REAL(mremap);
REAL(mprotect);
REAL(madvise);
REAL(ioctl);
REAL(poll);
REAL(open);
REAL(close);
REAL(read);
REAL(pread);
REAL(write);
REAL(fcntl);
REAL(fstat);
REAL(ftruncate);
REAL(syscall);
REAL(getrandom);
REAL(getrlimit);
REAL(sigaction);
REAL(sem_init);
REAL(nanosleep);
REAL(sched_getaffinity);
REAL(pthread_create);
REAL(pthread_mutex_init);
REAL(pthread_cond_init);
REAL(pthread_attr_init);
REAL(clock_gettime);
static int (*real_socketpair)(int, int, int, int[2]);
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static ssize_t (*real_recvmsg)(int, struct msghdr *, int);
static int (*real___register_atfork)(void (*)(void), void (*)(void), void (*)(void), void *);

/* Before anybody else may call: dlsym(3) is not for the handler of a signal. */
__attribute__((constructor)) static void load(void) {
#define LOAD(name) *(void **)&real_##name = dlsym(RTLD_NEXT, #name)
    LOAD(mmap);
    LOAD(munmap);
    LOAD(mremap);
    LOAD(mprotect);
    LOAD(madvise);
    LOAD(ioctl);
    LOAD(poll);
    LOAD(open);
    LOAD(close);
    LOAD(read);
    LOAD(pread);
    LOAD(write);
    LOAD(fcntl);
    LOAD(fstat);
    LOAD(ftruncate);
    LOAD(syscall);
    LOAD(getrandom);
    LOAD(getrlimit);
    LOAD(sigaction);
    LOAD(sem_init);
    LOAD(nanosleep);
    LOAD(sched_getaffinity);
    LOAD(pthread_create);
    LOAD(pthread_mutex_init);
    LOAD(pthread_cond_init);
    LOAD(pthread_attr_init);
    LOAD(clock_gettime);
    LOAD(socketpair);
    LOAD(send);
    LOAD(sendmsg);
    LOAD(recvmsg);
    LOAD(__register_atfork);
}

/* A function may be called before load() has run, by another library's start. */
#define READY(name)                                                                                \
    do {                                                                                           \
        if (!real_##name)                                                                          \
            load();                                                                                \
    } while (0)

void *mmap(void *p, size_t n, int access, int flags, int fd, off_t at) {
    READY(mmap);
    if (FAILS(mmap, ENOMEM))
        return MAP_FAILED;
    void *found = real_mmap(p, n, access, flags, fd, at);
    if (found != MAP_FAILED && !(flags & MAP_FIXED)) /* else it replaces what was counted */
        grow(1, n, __builtin_return_address(0));
    return found;
}

int munmap(void *p, size_t n) {
    READY(munmap);
    if (FAILS(munmap, ENOMEM))
        return -1;
    int failure = real_munmap(p, n);
    if (!failure)
        grow(-1, n, __builtin_return_address(0));
    return failure;
}

void *mremap(void *p, size_t from, size_t to, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    void *where = flags & (MREMAP_FIXED | 4) ? va_arg(rest, void *) : NULL;
    va_end(rest);
    READY(mremap);
    if (FAILS(mremap, ENOMEM))
        return lies ? where : MAP_FAILED;
    void *found = real_mremap(p, from, to, flags, where);
    if (found != MAP_FAILED) {
        if (!(flags & MREMAP_FIXED))
            grow(1, to, __builtin_return_address(0));
        if (!(flags & 4)) /* MREMAP_DONTUNMAP */
            grow(-1, from, __builtin_return_address(0));
    }
    return found;
}

int mprotect(void *p, size_t n, int access) {
    READY(mprotect);
    return FAILS(mprotect, ENOMEM) ? lies - 1 : real_mprotect(p, n, access);
}

int madvise(void *p, size_t n, int advice) {
    READY(madvise);
    return FAILS(madvise, EAGAIN) ? -1 : real_madvise(p, n, advice);
}

/* Half of what is asked for, in whole pages; what a kernel reports that was interrupted. */
static void half(int fd, unsigned long request, void *argument) {
    const uint64_t unit = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
    if (request == UFFDIO_MOVE) {
        struct uffdio_move *m = argument, some = *m;
        some.len = (m->len / 2) & ~unit;
        m->move = some.len && !real_ioctl(fd, request, &some) ? (__s64)some.len : 0;
    } else if (request == UFFDIO_COPY) {
        struct uffdio_copy *c = argument, some = *c;
        some.len = (c->len / 2) & ~unit;
        c->copy = some.len && !real_ioctl(fd, request, &some) ? (__s64)some.len : 0;
    }
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    READY(ioctl);
    if (!FAILS(ioctl, ENOMEM))
        return real_ioctl(fd, request, argument);
    int number = errno;
    if (partial)
        half(fd, request, argument);
    errno = number;
    return lies - 1;
}

int poll(struct pollfd *fds, nfds_t n, int timeout) {
    READY(poll);
    return FAILS(poll, ENOMEM) ? -1 : real_poll(fds, n, timeout);
}

int socketpair(int domain, int type, int protocol, int ends[2]) {
    READY(socketpair);
    return FAILS(socketpair, EMFILE) ? -1 : real_socketpair(domain, type, protocol, ends);
}

ssize_t send(int fd, const void *from, size_t n, int flags) {
    READY(send);
    return FAILS(send, ENOBUFS) ? -1 : real_send(fd, from, n, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    READY(sendmsg);
    return FAILS(sendmsg, ETOOMANYREFS) ? -1 : real_sendmsg(fd, message, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    READY(recvmsg);
    return FAILS(recvmsg, ENOBUFS) ? -1 : real_recvmsg(fd, message, flags);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    READY(open);
    return FAILS(open, EMFILE) ? -1 : real_open(path, flags, mode);
}

int close(int fd) {
    READY(close);
    if (!FAILS(close, EIO))
        return real_close(fd);
    int number = errno;
    (void)real_close(fd);
    errno = number;
    return -1;
}

ssize_t read(int fd, void *to, size_t n) {
    READY(read);
    return FAILS(read, EIO) ? -1 : real_read(fd, to, n);
}

ssize_t pread(int fd, void *to, size_t n, off_t at) {
    READY(pread);
    return FAILS(pread, EIO) ? -1 : real_pread(fd, to, n, at);
}

ssize_t write(int fd, const void *from, size_t n) {
    READY(write);
    return FAILS(write, EIO) ? -1 : real_write(fd, from, n);
}

int fcntl(int fd, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    READY(fcntl);
    return FAILS(fcntl, EMFILE) ? -1 : real_fcntl(fd, command, argument);
}

int fstat(int fd, struct stat *out) {
    READY(fstat);
    return FAILS(fstat, EIO) ? -1 : real_fstat(fd, out);
}

int ftruncate(int fd, off_t n) {
    READY(ftruncate);
    return FAILS(ftruncate, EIO) ? -1 : real_ftruncate(fd, n);
}

long syscall(long number, ...) {
    va_list rest;
    long a[6];
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    READY(syscall);
    if (FAILS(syscall, number == SYS_userfaultfd ? EPERM : ENOMEM))
        return lies - 1;
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

ssize_t getrandom(void *out, size_t n, unsigned flags) {
    READY(getrandom);
    return FAILS(getrandom, ENOSYS) ? -1 : real_getrandom(out, n, flags);
}

int getrlimit(__rlimit_resource_t resource, struct rlimit *out) {
    READY(getrlimit);
    return FAILS(getrlimit, EINVAL) ? -1 : real_getrlimit(resource, out);
}

int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    READY(sigaction);
    return FAILS(sigaction, EINVAL) ? -1 : real_sigaction(number, action, old);
}

int sem_init(sem_t *sem, int shared, unsigned value) {
    READY(sem_init);
    return FAILS(sem_init, ENOSPC) ? -1 : real_sem_init(sem, shared, value);
}

int nanosleep(const struct timespec *t, struct timespec *left) {
    READY(nanosleep);
    return FAILS(nanosleep, EINTR) ? -1 : real_nanosleep(t, left);
}

/* Never fails, and is not counted. The other clocks tell when a wait for a condition ends. */
int clock_gettime(clockid_t clock, struct timespec *out) {
    READY(clock_gettime);
    int failure = real_clock_gettime(clock, out);
    if (failure || clock != CLOCK_MONOTONIC || !ours(__builtin_return_address(0)))
        return failure;
    int refusing =
        __atomic_load_n(&armed, __ATOMIC_ACQUIRE) && later && fault_injection_failed() >= 0;
    int64_t more =
        __atomic_add_fetch(&ahead, refusing ? LOOK_NS : 0, __ATOMIC_SEQ_CST) + out->tv_nsec;
    out->tv_sec += more / 1000000000;
    out->tv_nsec = more % 1000000000;
    return 0;
}

int sched_getaffinity(pid_t pid, size_t n, cpu_set_t *set) {
    READY(sched_getaffinity);
    return FAILS(sched_getaffinity, EINVAL) ? -1 : real_sched_getaffinity(pid, n, set);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *),
                   void *argument) {
    READY(pthread_create);
    return FAILS(pthread_create, EAGAIN) ? errno
                                         : real_pthread_create(thread, attributes, body, argument);
}

int pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *attributes) {
    READY(pthread_mutex_init);
    return FAILS(pthread_mutex_init, ENOMEM) ? errno : real_pthread_mutex_init(m, attributes);
}

int pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *attributes) {
    READY(pthread_cond_init);
    return FAILS(pthread_cond_init, ENOMEM) ? errno : real_pthread_cond_init(c, attributes);
}

int pthread_attr_init(pthread_attr_t *attributes) {
    READY(pthread_attr_init);
    return FAILS(pthread_attr_init, ENOMEM) ? errno : real_pthread_attr_init(attributes);
}

/* What pthread_atfork(3) calls. */
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *dso) {
    READY(__register_atfork);
    return FAILS(__register_atfork, ENOMEM) ? errno
                                            : real___register_atfork(prepare, parent, child, dso);
}

/* The allocator has names of its own that need no look-up, which would allocate. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

#define COUNTED(p) counted(p, __builtin_return_address(0))

void *malloc(size_t n) { return FAILS(malloc, ENOMEM) ? NULL : COUNTED(__libc_malloc(n)); }

void *calloc(size_t n, size_t each) {
    return FAILS(calloc, ENOMEM) ? NULL : COUNTED(__libc_calloc(n, each));
}

void *realloc(void *p, size_t n) {
    if (FAILS(realloc, ENOMEM))
        return NULL;
    return p ? __libc_realloc(p, n) : COUNTED(__libc_realloc(p, n));
}

void free(void *p) {
    if (p && ours(__builtin_return_address(0)))
        __atomic_sub_fetch(&blocks, 1, __ATOMIC_SEQ_CST);
    __libc_free(p);
}

int posix_memalign(void **out, size_t align, size_t n) {
    int number = errno;
    if (FAILS(posix_memalign, ENOMEM)) {
        int failure = errno;
        errno = number; /* which it leaves alone */
        return failure;
    }
    void *p = __libc_memalign(align, n);
    if (!p)
        return ENOMEM;
    *out = COUNTED(p);
    return 0;
}
