/* SPDX-License-Identifier: Apache-2.0
 * The ggml that has loaded this library: its functions, found when it does.
 *
 * Nothing is linked against ggml: one and the same file serves a ggml in shared libraries, in the
 * executable, and in a module of an interpreter. */
#ifndef PYCCMEM_GGML_HOST_H
#define PYCCMEM_GGML_HOST_H

#include <stdbool.h>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

typedef struct ggml_host {
    ggml_backend_buffer_t (*buffer_init)(ggml_backend_buffer_type_t type,
                                         struct ggml_backend_buffer_i functions, void *context,
                                         size_t size);
    ggml_backend_buffer_type_t (*cpu_buffer_type)(void);
    int (*graph_n_nodes)(struct ggml_cgraph *graph);
    struct ggml_tensor *(*graph_node)(struct ggml_cgraph *graph, int index);
    const struct ggml_type_traits *(*type_traits)(enum ggml_type type);
    ggml_backend_dev_t (*dev_by_type)(enum ggml_backend_dev_type type);
    const char *(*version)(void);
    void (*log)(enum ggml_log_level level, const char *format, ...);
} ggml_host;

/* Valid once host_find() has returned true. */
extern ggml_host host;

/* Finds the functions in the module that has the address `caller` and in those that it depends on.
 * Returns false, and says why on the standard error, if one is missing or if it is another version
 * of ggml than that whose headers this library was built with. */
bool host_find(const void *caller);

#endif
