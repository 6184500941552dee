/* SPDX-License-Identifier: Apache-2.0
 *
 * Seconds for page faults that a bare userfaultfd(2) handler answers by UFFDIO_COPY, with nothing
 * decrypted: what mappings are measured against. Usage: faults BLOCK COUNT */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static int descriptor;
static uint8_t *range, *source;
static size_t block;

static void *serve(void *unused) {
    (void)unused;
    for (;;) {
        struct pollfd wait = {.fd = descriptor, .events = POLLIN};
        struct uffd_msg message;
        (void)poll(&wait, 1, -1);
        if (read(descriptor, &message, sizeof message) != sizeof message)
            continue;
        size_t at = (size_t)(message.arg.pagefault.address - (uintptr_t)range) / block * block;
        struct uffdio_copy copy = {.dst = (uintptr_t)range + at,
                                   .src = (uintptr_t)source,
                                   .len = block};
        if (ioctl(descriptor, UFFDIO_COPY, &copy))
            exit(3);
    }
    return NULL;
}

static void *map(size_t n) {
    void *p =
        mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        exit(3);
    return p;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    block = strtoull(argv[1], NULL, 10);
    size_t count = strtoull(argv[2], NULL, 10), n = count * block;
    pthread_t thread;
    struct timespec begin, end;
    descriptor = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API};
    if (descriptor < 0 || ioctl(descriptor, UFFDIO_API, &api))
        return 3;
    range = map(n);
    source = map(block);
    memset(source, 1, block);
    struct uffdio_register watch = {.range = {.start = (uintptr_t)range, .len = n},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(descriptor, UFFDIO_REGISTER, &watch) || pthread_create(&thread, NULL, serve, NULL))
        return 3;
    unsigned sum = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    /* An odd step visits every block of a number of them that is a power of two, in no order. */
    for (size_t i = 0, b = 0; i < count; i++, b = (b + 2654435761u) & (count - 1))
        sum += *(volatile uint8_t *)(range + b * block);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.9f\n",
           ((double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec)) /
               (double)count);
    return sum == count ? 0 : 1;
}
