/* SPDX-License-Identifier: Apache-2.0
 *
 * Doors to functions of csrc/ that the module does not export, for promises that no caller of today
 * relies on: native_build.units() links this file with csrc/. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crypto/aegis/aegis.h"
#include "crypto/aes/aes.h"
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
        _exit(key_derive(key, KEY_BY_AES, "aegis-128x2", id, 4096, out, sizeof out));
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

/* One of the portable kernels for messages and for blocks. */
EXPORT const void *unit_kernel(const char *name) {
    const aegis_ops *aegis = tier_kernels_of(CCMEM_TIER_PORTABLE).aegis;
    const aes_ops *aes = tier_kernels_of(CCMEM_TIER_PORTABLE).aes;
    const struct {
        const char *name;
        const void *kernel;
    } kernels[] = {
        {"start", (const void *)aegis->start},
        {"absorb", (const void *)aegis->absorb},
        {"seal", (const void *)aegis->seal},
        {"open", (const void *)aegis->open},
        {"finish", (const void *)aegis->finish},
        {"encrypt", (const void *)aes->encrypt},
        {"decrypt_block", (const void *)aes->decrypt_block},
    };
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (!strcmp(kernels[i].name, name))
            return kernels[i].kernel;
    return NULL;
}
