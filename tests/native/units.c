/* SPDX-License-Identifier: Apache-2.0
 *
 * Doors to functions of csrc/ that the module does not export, for promises that no caller of today
 * relies on: native_build.library() links this file with csrc/. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crypto/aegis/aegis.h"
#include "pages/key.h"
#include "tiers/tiers.h"

#define EXPORT __attribute__((visibility("default")))

/* The status of key_derive() in a forked child, for a key of the parent's; -1 when the child died.
 */
EXPORT int unit_derive_in_a_child(const ccmem_key *key) {
    const uint8_t id[CCMEM_STORE_ID_SIZE] = {0};
    uint8_t out[16];
    int status;
    const pid_t child = fork();
    if (!child)
        _exit(key_derive(key, "aegis-128x2", id, 4096, out, sizeof out));
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

EXPORT int unit_key_new(ccmem_key **key) {
    const uint8_t raw[CCMEM_ROOT_KEY_SIZE] = {1};
    const ccmem_status status = ccmem_init(NULL);
    return status ? status : ccmem_key_from_bytes(raw, CCMEM_SECRET_MLOCK, key);
}

EXPORT void unit_key_free(ccmem_key *key) { ccmem_key_free(key); }

/* The tier's kernel for a step of a message. */
EXPORT const void *unit_aegis_kernel(int tier, const char *step) {
    const aegis_ops *ops = tier_kernels_of((ccmem_tier)tier).aegis;
    if (!strcmp(step, "start"))
        return (const void *)ops->start;
    if (!strcmp(step, "absorb"))
        return (const void *)ops->absorb;
    if (!strcmp(step, "seal"))
        return (const void *)ops->seal;
    if (!strcmp(step, "open"))
        return (const void *)ops->open;
    return strcmp(step, "finish") ? NULL : (const void *)ops->finish;
}
