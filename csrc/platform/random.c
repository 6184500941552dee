/* SPDX-License-Identifier: Apache-2.0
 * Bytes from the system's random generator. */
#include "platform/random.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/types.h>

ccmem_status random_bytes(void *out, size_t n) {
    uint8_t *p = out;

    while (n) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return CCMEM_ERR_ENTROPY;
        p += got;
        n -= (size_t)got;
    }
    return CCMEM_OK;
}
