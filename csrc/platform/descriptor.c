/* SPDX-License-Identifier: Apache-2.0
 * Descriptors that are closed only while they still are the files they were. */
#include "platform/descriptor.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

int descriptor_own(ccmem_kept_file *d, int fd) {
    struct stat found;
    if (fstat(fd, &found))
        return 0;
    *d = (ccmem_kept_file){fd, found.st_dev, found.st_ino};
    return 1;
}

int descriptor_number(const ccmem_kept_file *d) {
    const int number = errno;
    struct stat found;
    int same = d->fd >= 0 && !fstat(d->fd, &found) && found.st_dev == d->device &&
               found.st_ino == d->inode;
    errno = number;
    return same ? d->fd : -1;
}

void descriptor_close(ccmem_kept_file *d) {
    const int number = errno, fd = d->fd;
    struct stat found;
    d->fd = -1;
    if (fd < 0)
        return;
    /* A number without a file needs no closing. A file that fstat() refuses is taken for ours. */
    int told = !fstat(fd, &found);
    if (told ? found.st_dev == d->device && found.st_ino == d->inode : errno != EBADF)
        (void)close(fd); /* Linux frees the number whatever it returns */
    errno = number;
}
