/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

ggml_host host;

/* Finds a function; a missing one is named. */
static bool find(void *module, const char *name, void *function) {
    void *found = dlsym(module, name);
    if (!found)
        found = dlsym(RTLD_DEFAULT, name);
    if (!found)
        fprintf(stderr, "pyccmem: this program's ggml does not export %s\n", name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

bool host_find(const void *caller) {
    Dl_info info;
    void *module = NULL;
    if (dladdr(caller, &info) && info.dli_fname)
        module = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!module)
        module = dlopen(NULL, RTLD_LAZY); /* it is the executable itself */
    if (!module || !find(module, "ggml_version", &host.version) ||
        !find(module, "ggml_backend_buffer_init", &host.buffer_init) ||
        !find(module, "ggml_backend_cpu_buffer_type", &host.cpu_buffer_type) ||
        !find(module, "ggml_graph_n_nodes", &host.graph_n_nodes) ||
        !find(module, "ggml_graph_node", &host.graph_node) ||
        !find(module, "ggml_get_type_traits", &host.type_traits) ||
        !find(module, "ggml_backend_dev_by_type", &host.dev_by_type) ||
        !find(module, "ggml_log_internal", &host.log))
        return false;
    /* Structures of ggml's own are laid out here, and change without a new number of the
     * interface. */
    if (strcmp(host.version(), PYCCMEM_GGML_VERSION) != 0) {
        fprintf(stderr,
                "pyccmem: built for ggml " PYCCMEM_GGML_VERSION ", and this program has ggml %s; "
                "build it with the sources of that one (make ggml-backend GGML=...)\n",
                host.version());
        return false;
    }
    return true;
}
