/* SPDX-License-Identifier: Apache-2.0
 * The sentence of each status. */
#include "ccmem.h"

const char *ccmem_status_text(ccmem_status status) {
    switch (status) {
    case CCMEM_OK: return "success";
    case CCMEM_ERR_ARGUMENT: return "an argument is outside its documented domain";
    case CCMEM_ERR_RANGE: return "the offset and length reach outside the store";
    case CCMEM_ERR_EQUAL_HALVES:
        return "the two halves of the XTS key are equal; IEEE 1619-2018 requires them to differ";
    case CCMEM_ERR_NOMEM: return "the system refused memory";
    case CCMEM_ERR_MEMLOCK:
        return "RLIMIT_MEMLOCK leaves no room for another locked page; raise it (ulimit -l) or "
               "close unused keys and buffers";
    case CCMEM_ERR_SECRETMEM:
        return "the required level of secret memory is not available on this system";
    case CCMEM_ERR_FORK:
        return "the object belongs to the process that this one was forked from; make a new one "
               "here";
    case CCMEM_ERR_VERSION:
        return "a page has no unused version left under this key; move the data to a new buffer";
    case CCMEM_ERR_TIER: return "the tier is unknown or this processor cannot run it";
    case CCMEM_ERR_SELFTEST: return "a known-answer test gave a wrong answer";
    case CCMEM_ERR_ENTROPY: return "the system's random generator failed";
    case CCMEM_ERR_IO: return "reading or mapping the file failed";
    case CCMEM_ERR_KEYFILE:
        return "the key file must hold exactly 32 bytes, or 64 hexadecimal digits and nothing but "
               "blanks after them";
    case CCMEM_ERR_INTEGRITY: return "a page, a message or a wrapped key does not match its tag";
    case CCMEM_ERR_READONLY:
        return "the store is over a file that others may have mapped, and cannot be written; copy "
               "the data to a new buffer";
    case CCMEM_ERR_BUDGET:
        return "the plaintext budget leaves no room; raise it, or close windows and arrays";
    case CCMEM_ERR_FAULT: return "the fault mechanism is not available on this system";
    case CCMEM_ERR_MAPPED:
        return "another mapping covers some of the bytes, and one of the two can be written";
    case CCMEM_ERR_CLOSED: return "the store was removed from its arena, or the cache was erased";
    case CCMEM_ERR_WITHHELD: return "the key of the file was withheld";
    case CCMEM_ERR_FROZEN:
        return "each page of the store is sealed once, and cannot be written; copy the data to a "
               "new "
               "store";
    case CCMEM_ERR_REKEY: return "the pages are being moved to another key: finish that first";
    case CCMEM_ERR_PINNED: return "too few frames of the window would be left unpinned";
    case CCMEM_ERR_THREAD:
        return "the system refused a thread; raise the limit of processes and threads";
    }
    return "unknown status";
}
