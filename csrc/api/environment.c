/* SPDX-License-Identifier: Apache-2.0
 * The block of memory that the process was given its environment in. Unsetting a variable leaves
 * its value there, and in /proc/PID/environ. */
#include <string.h>

#include "ccmem.h"

extern char **environ;

uint64_t ccmem_environment_wipe(const char *name) {
    const size_t length = name ? strlen(name) : 0;
    uint64_t found = 0;

    if (!length || !environ)
        return 0;
    for (char **entry = environ; *entry; entry++) {
        if (strncmp(*entry, name, length) != 0 || (*entry)[length] != '=')
            continue;
        char *value = *entry + length + 1;
        ccmem_wipe(value, strlen(value));
        found++;
    }
    return found;
}
