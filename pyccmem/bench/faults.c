/* SPDX-License-Identifier: Apache-2.0
 *
 * The least that a page fault handled in user space costs: a userfaultfd, a thread that answers each
 * fault with one UFFDIO_COPY of a block, and nothing else (man 2 ioctl_userfaultfd). Built by
 * mapping.py when the benchmarks run. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

struct handler {
    int fd;
    uint64_t block;
    uint8_t *source;
};

/* Ends when reading fails or a copy does; the last fault of a run is made by cancelling. */
static void *answer(void *arg) {
    struct handler *h = arg;
    struct uffd_msg message;
    while (read(h->fd, &message, sizeof message) == sizeof message) {
        struct uffdio_copy copy = {
            .dst = message.arg.pagefault.address & ~(h->block - 1),
            .src = (uint64_t)(uintptr_t)h->source,
            .len = h->block,
        };
        if (message.event == UFFD_EVENT_PAGEFAULT && ioctl(h->fd, UFFDIO_COPY, &copy))
            break;
    }
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint8_t *map(uint64_t n, uint64_t alignment) {
    uint8_t *raw = mmap(NULL, n + alignment, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return raw == MAP_FAILED ? NULL
                             : raw + (-(uintptr_t)raw & (alignment - 1));
}

/* Seconds of one touch of a block that is not there, the mean of `count` at random places of
 * `blocks` blocks of `block` bytes, a power of two; the block is dropped again untimed. Negative where
 * the system permits no userfaultfd. What it maps stays until the process ends. */
__attribute__((visibility("default"))) double faults_bare(uint64_t block, uint64_t blocks,
                                                          uint64_t count) {
    struct handler h = {.block = block};
    struct uffdio_api api = {.api = UFFD_API};
    uint64_t size = block * blocks, seed = 88172645463325252u;
    uint8_t *memory = map(size, block);
    pthread_t thread;
    double seconds = 0;

    h.source = map(block, block);
    h.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (!memory || !h.source || h.fd < 0 || ioctl(h.fd, UFFDIO_API, &api))
        return -1;
    for (uint64_t i = 0; i < block; i++)
        h.source[i] = (uint8_t)(i + 1);
    struct uffdio_register area = {
        .range = {.start = (uint64_t)(uintptr_t)memory, .len = size},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    if (ioctl(h.fd, UFFDIO_REGISTER, &area) || pthread_create(&thread, NULL, answer, &h))
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17; /* xorshift64 */
        volatile uint8_t *place = memory + (seed >> 8) % blocks * block;
        double start = now();
        uint8_t got = place[0];
        seconds += now() - start;
        if (got != 1 || madvise((void *)(uintptr_t)place, block, MADV_DONTNEED))
            return -1;
    }
    pthread_cancel(thread);
    pthread_join(thread, NULL);
    close(h.fd);
    return seconds / (double)count;
}
