/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static const struct ggml_type_traits_cpu *(*traits_of)(enum ggml_type type);

/* The CPU backend may lie in a library that was loaded by itself, whose functions only it knows:
 * one of them tells which library that is. */
static void look(void) {
    Dl_info info;
    void *module = NULL, *found = dlsym(RTLD_DEFAULT, "ggml_get_type_traits_cpu");
    ggml_backend_dev_t cpu = host.dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!found && cpu && dladdr((void *)cpu->iface.get_name, &info) && info.dli_fname)
        module = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (module)
        found = dlsym(module, "ggml_get_type_traits_cpu");
    memcpy(&traits_of, &found, sizeof found);
}

bool kernels_find(enum ggml_type type, dot_kernel *out) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look);
    const struct ggml_type_traits_cpu *own = traits_of ? traits_of(type) : NULL;
    if (!own || !own->vec_dot)
        return false;
    const struct ggml_type_traits *x = host.type_traits(own->vec_dot_type);
    *out = (dot_kernel){.dot = own->vec_dot,
                        .from_float = traits_of(own->vec_dot_type)->from_float,
                        .unit = (size_t)x->blck_size,
                        .unit_bytes = x->type_size};
    return out->from_float != NULL;
}
