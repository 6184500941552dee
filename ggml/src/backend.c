/* SPDX-License-Identifier: Apache-2.0
 * ggml's interface to this library: a registry entry with one device, "pyccmem".
 *
 * llama.cpp puts weights into the buffer type of a device of type ACCEL, without being asked to,
 * where the device says that it can do the operation that a weight is for. Activations are to lie
 * in ordinary memory, so that the CPU's operations use them as they are. But a scheduler takes a
 * backend's own memory from its device's buffer type, too. So there are two devices: the one that
 * is registered has the encrypted buffer type, and the one that its backends name has the CPU's. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

typedef struct context {
    unsigned threads; /* 0: as many as there are processors */
} context;

static struct ggml_backend_reg registry;
static struct ggml_backend_device for_weights, for_results;

static const char *name(void) { return "pyccmem"; }

/* ---- backend --------------------------------------------------------------------------------- */

static const char *backend_name(ggml_backend_t backend) {
    (void)backend;
    return name();
}

static void backend_free(ggml_backend_t backend) {
    free(backend->context);
    free(backend);
}

static enum ggml_status graph_compute(ggml_backend_t backend, struct ggml_cgraph *graph) {
    const context *c = backend->context;
    if (c->threads)
        ccmem_set_threads(c->threads);
    for (int i = 0; i < host.graph_n_nodes(graph); i++) {
        struct ggml_tensor *node = host.graph_node(graph, i);
        if (!(node->flags & GGML_TENSOR_FLAG_COMPUTE))
            continue;
        ccmem_status status = ops_compute(node);
        if (status != CCMEM_OK) {
            host.log(GGML_LOG_LEVEL_ERROR, "pyccmem: %s is not computed: %s\n", node->name,
                     ccmem_status_text(status));
            return GGML_STATUS_FAILED;
        }
    }
    return GGML_STATUS_SUCCESS;
}

static const struct ggml_backend_i backend_functions = {
    .get_name = backend_name,
    .free = backend_free,
    .graph_compute = graph_compute,
};

static void set_threads(ggml_backend_t backend, int threads) {
    context *c = backend->context;
    if (threads > 0)
        c->threads = threads < CCMEM_MAX_THREADS ? (unsigned)threads : CCMEM_MAX_THREADS;
}

/* ---- devices --------------------------------------------------------------------------------- */

static const char *device_name(ggml_backend_dev_t device) {
    (void)device;
    return name();
}

static const char *device_description(ggml_backend_dev_t device) {
    (void)device;
    return "weights encrypted in memory";
}

static void device_memory(ggml_backend_dev_t device, size_t *available, size_t *total) {
    (void)device;
    *available = *total = 0; /* none of its own */
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t device) {
    (void)device;
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void device_props(ggml_backend_dev_t device, struct ggml_backend_dev_props *props) {
    *props = (struct ggml_backend_dev_props){
        .name = device_name(device),
        .description = device_description(device),
        .type = device_type(device),
        .caps = {.mmap_support = true},
    };
}

static ggml_backend_t init_backend(ggml_backend_dev_t device, const char *parameters) {
    static ggml_guid guid = {0x70, 0x79, 0x63, 0x63, 0x6d, 0x65, 0x6d, 0x9d,
                             0x1f, 0x4a, 0x87, 0x0e, 0xc5, 0x52, 0xb3, 0x01};
    (void)device;
    (void)parameters;
    struct ggml_backend *backend = calloc(1, sizeof *backend);
    context *c = calloc(1, sizeof *c);
    if (!backend || !c) {
        free(backend);
        free(c);
        return NULL;
    }
    backend->guid = &guid;
    backend->iface = backend_functions;
    backend->device = &for_results;
    backend->context = c;
    /* ggml's own threads, which spin while they wait, do our part of the work: beside them there
     * would be no processor for others. */
    void *openmp = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    ccmem_set_openmp(openmp ? dlsym(openmp, "GOMP_parallel") : NULL);
    return backend;
}

static ggml_backend_buffer_type_t weights_type(ggml_backend_dev_t device) {
    return weights_buffer_type(device);
}

static ggml_backend_buffer_type_t results_type(ggml_backend_dev_t device) {
    (void)device;
    return host.cpu_buffer_type();
}

static bool supports_op(ggml_backend_dev_t device, const struct ggml_tensor *node) {
    (void)device;
    return ops_supported(node);
}

static bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    (void)device;
    return type == weights_buffer_type(&for_weights) ||
           (type->iface.is_host && type->iface.is_host(type));
}

/* ---- registry -------------------------------------------------------------------------------- */

static const char *registry_name(ggml_backend_reg_t reg) {
    (void)reg;
    return name();
}

static size_t device_count(ggml_backend_reg_t reg) {
    (void)reg;
    return 1;
}

static ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index) {
    (void)reg;
    return index ? NULL : &for_weights;
}

static void *proc_address(ggml_backend_reg_t reg, const char *function) {
    (void)reg;
    if (strcmp(function, "ggml_backend_set_n_threads") == 0)
        return (void *)set_threads;
    if (strcmp(function, "pyccmem_ciphertext") == 0)
        return (void *)weights_ciphertext;
    return NULL;
}

static void fill(void) {
    const struct ggml_backend_device_i functions = {
        .get_name = device_name,
        .get_description = device_description,
        .get_memory = device_memory,
        .get_type = device_type,
        .get_props = device_props,
        .init_backend = init_backend,
        .get_buffer_type = weights_type,
        .supports_op = supports_op,
        .supports_buft = supports_buft,
    };
    for_weights = (struct ggml_backend_device){.iface = functions, .reg = &registry};
    for_results = for_weights;
    for_results.iface.get_buffer_type = results_type;
    registry = (struct ggml_backend_reg){
        .api_version = GGML_BACKEND_API_VERSION,
        .iface = {.get_name = registry_name,
                  .get_device_count = device_count,
                  .get_device = get_device,
                  .get_proc_address = proc_address},
    };
}

/* What ggml calls when it has loaded this library; NULL: it goes on without. */
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void);

ggml_backend_reg_t ggml_backend_init(void) {
    if (registry.api_version)
        return &registry;
    if (!host_find(__builtin_return_address(0)))
        return NULL;
    ccmem_status status = ccmem_init(getenv("PYCCMEM_TIER"));
    if (status != CCMEM_OK) {
        host.log(GGML_LOG_LEVEL_ERROR, "pyccmem: %s\n", ccmem_status_text(status));
        return NULL;
    }
    if (!weights_start())
        return NULL;
    fill();
    return &registry;
}
