/* SPDX-License-Identifier: Apache-2.0 */
#include "weights.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    PAGE = CCMEM_PAGE_SIZE_MIN,
    ALIGNMENT = 64,
    COPY_BYTES = 64 << 10 /* plaintext at once where a tensor is copied within */
};

/* A tensor. It is sealed once, as a whole, when a model is loaded: so no earlier state of it can be
 * put back. A tensor that is written in parts, or again, gets a store that can be. */
typedef struct weight {
    struct weight *next;
    ccmem_store *store; /* one of the two, or NULL */
    uint64_t nbytes;
    bool copied; /* it was told that someone has taken a copy */
    char name[GGML_MAX_NAME];
    _Alignas(8) uint8_t once[CCMEM_STORE_SIZE];
    _Alignas(8) uint8_t again[CCMEM_STORE_SIZE];
} weight;

typedef struct buffer {
    struct buffer *next; /* all of the process */
    pthread_mutex_t lock;
    uint8_t *addresses; /* of the tensors' data: nothing lies there, a use is SIGSEGV */
    size_t size;
    ccmem_arena *once, *again; /* the second is made when it is needed */
    weight *weights;
} buffer;

static ccmem_key *key;
static struct ggml_backend_buffer_type type;

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static buffer *all;

bool weights_start(void) {
    ccmem_status status = CCMEM_OK;
    if (!key)
        status = ccmem_key_generate(CCMEM_SECRET_MLOCK, &key);
    if (status != CCMEM_OK)
        host.log(GGML_LOG_LEVEL_ERROR, "pyccmem: no key: %s\n", ccmem_status_text(status));
    return status == CCMEM_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static const struct ggml_tensor *root_of(const struct ggml_tensor *tensor) {
    return tensor->view_src ? tensor->view_src : tensor;
}

bool weights_hold(const struct ggml_tensor *tensor) {
    const struct ggml_tensor *root = tensor ? root_of(tensor) : NULL;
    return root && root->buffer && root->buffer->buft == &type;
}

ccmem_status weights_find(const struct ggml_tensor *tensor, weight_place *place) {
    const struct ggml_tensor *root = root_of(tensor);
    const weight *w = root->extra;
    if (!w || !w->store)
        return CCMEM_ERR_CLOSED;
    place->store = w->store;
    place->offset = tensor == root ? 0 : tensor->view_offs;
    return CCMEM_OK;
}

static enum ggml_status init_tensor(ggml_backend_buffer_t ggml_buffer, struct ggml_tensor *tensor) {
    buffer *b = ggml_buffer->context;
    if (tensor->view_src) {
        tensor->extra = tensor->view_src->extra;
        return GGML_STATUS_SUCCESS;
    }
    weight *w = calloc(1, sizeof *w);
    if (!w)
        return GGML_STATUS_ALLOC_FAILED;
    memcpy(w->name, tensor->name, sizeof w->name);
    w->name[sizeof w->name - 1] = 0;
    const struct ggml_type_traits *traits = host.type_traits(tensor->type);
    w->nbytes = traits->type_size * (uint64_t)(tensor->ne[0] / traits->blck_size) *
                (uint64_t)tensor->ne[1] * (uint64_t)tensor->ne[2] * (uint64_t)tensor->ne[3];
    tensor->extra = w;
    pthread_mutex_lock(&b->lock);
    w->next = b->weights;
    b->weights = w;
    pthread_mutex_unlock(&b->lock);
    return GGML_STATUS_SUCCESS;
}

/* The bytes of the store that are not written over, from one that is sealed once to one that can be
 * written. */
static ccmem_status copy(ccmem_store *from, ccmem_store *to, uint64_t nbytes) {
    uint8_t *plain = NULL;
    ccmem_status status = ccmem_plain_alloc(COPY_BYTES, &plain);
    for (uint64_t at = 0; status == CCMEM_OK && at < nbytes; at += COPY_BYTES) {
        const uint64_t n = nbytes - at < COPY_BYTES ? nbytes - at : COPY_BYTES;
        status = ccmem_store_read(from, at, plain, n);
        if (status == CCMEM_OK)
            status = ccmem_store_write(to, at, plain, n);
    }
    ccmem_plain_free(plain);
    return status;
}

/* Gives the tensor a store that can be written, with what it holds, or zeros. */
static ccmem_status make_writable(buffer *b, weight *w) {
    ccmem_status status = CCMEM_OK;
    if (w->store == (ccmem_store *)w->again)
        return CCMEM_OK;
    if (!b->again)
        status = ccmem_arena_new(key, CCMEM_AEGIS_128X2, PAGE, 0, 0, CCMEM_FRESH_NOT, &b->again);
    if (status == CCMEM_OK)
        status = ccmem_arena_add(b->again, w->nbytes, NULL, w->again);
    if (status != CCMEM_OK || !w->store) {
        w->store = status == CCMEM_OK ? (ccmem_store *)w->again : w->store;
        return status;
    }
    status = copy(w->store, (ccmem_store *)w->again, w->nbytes);
    ccmem_arena_remove(w->once);
    w->store = (ccmem_store *)w->again;
    return status;
}

static ccmem_status write_weight(buffer *b, weight *w, const void *data, uint64_t offset,
                                 uint64_t n) {
    ccmem_status status;
    if (!w->store && offset == 0 && n == w->nbytes) {
        status = ccmem_arena_add(b->once, n, data, w->once);
        if (status == CCMEM_OK)
            w->store = (ccmem_store *)w->once;
        return status;
    }
    status = make_writable(b, w);
    return status == CCMEM_OK ? ccmem_store_write(w->store, offset, data, n) : status;
}

/* Writes, and if that fails, lets every use of the tensor fail from then on: ggml's functions for
 * this return nothing. */
static void set(ggml_backend_buffer_t ggml_buffer, struct ggml_tensor *tensor, const void *data,
                size_t offset, size_t n) {
    buffer *b = ggml_buffer->context;
    weight *w = root_of(tensor)->extra;
    if (!n)
        return;
    pthread_mutex_lock(&b->lock);
    ccmem_status status =
        write_weight(b, w, data, (tensor->view_src ? tensor->view_offs : 0) + offset, n);
    if (status != CCMEM_OK) {
        host.log(GGML_LOG_LEVEL_ERROR, "pyccmem: %s cannot be encrypted: %s\n", w->name,
                 ccmem_status_text(status));
        w->store = NULL;
    }
    pthread_mutex_unlock(&b->lock);
}

static void set_tensor(ggml_backend_buffer_t ggml_buffer, struct ggml_tensor *tensor,
                       const void *data, size_t offset, size_t n) {
    set(ggml_buffer, tensor, data, offset, n);
}

static void memset_tensor(ggml_backend_buffer_t ggml_buffer, struct ggml_tensor *tensor,
                          uint8_t value, size_t offset, size_t n) {
    uint8_t some[1024];
    memset(some, value, sizeof some);
    for (size_t at = 0; at < n; at += sizeof some)
        set(ggml_buffer, tensor, some, offset + at, n - at < sizeof some ? n - at : sizeof some);
}

/* Decrypts. ggml asks for this when no backend can do an operation on the weight where it is, and
 * puts what it gets into ordinary memory, which is told. */
static void get_tensor(ggml_backend_buffer_t ggml_buffer, const struct ggml_tensor *tensor,
                       void *data, size_t offset, size_t n) {
    buffer *b = ggml_buffer->context;
    weight_place place;
    weight *w = root_of(tensor)->extra;
    pthread_mutex_lock(&b->lock);
    const bool first = !w->copied;
    w->copied = true;
    pthread_mutex_unlock(&b->lock);
    ccmem_status status = weights_find(tensor, &place);
    if (status == CCMEM_OK)
        status = ccmem_store_read(place.store, place.offset + offset, data, n);
    if (status != CCMEM_OK) {
        memset(data, 0, n);
        host.log(GGML_LOG_LEVEL_ERROR, "pyccmem: %s reads as zeros: %s\n", w->name,
                 ccmem_status_text(status));
    } else if (first) {
        host.log(GGML_LOG_LEVEL_WARN,
                 "pyccmem: %s is copied in the clear for an operation that "
                 "this backend does not have\n",
                 w->name);
    }
}

/* ---- buffers --------------------------------------------------------------------------------- */

static void *get_base(ggml_backend_buffer_t ggml_buffer) {
    return ((buffer *)ggml_buffer->context)->addresses;
}

static void clear(ggml_backend_buffer_t ggml_buffer, uint8_t value) {
    buffer *b = ggml_buffer->context;
    for (weight *w = b->weights; w; w = w->next) {
        struct ggml_tensor tensor = {.extra = w};
        memset_tensor(ggml_buffer, &tensor, value, 0, w->nbytes);
    }
}

static void drop(buffer *b) {
    for (weight *w = b->weights, *next; w; w = next) {
        next = w->next;
        ccmem_arena_remove(w->once);
        ccmem_arena_remove(w->again);
        free(w);
    }
    ccmem_arena_free(b->once);
    ccmem_arena_free(b->again);
    if (b->addresses)
        munmap(b->addresses, b->size);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

static void free_buffer(ggml_backend_buffer_t ggml_buffer) {
    buffer *b = ggml_buffer->context;
    pthread_mutex_lock(&all_lock);
    for (buffer **link = &all; *link; link = &(*link)->next)
        if (*link == b) {
            *link = b->next;
            break;
        }
    pthread_mutex_unlock(&all_lock);
    drop(b);
}

static const struct ggml_backend_buffer_i buffer_functions = {
    .free_buffer = free_buffer,
    .get_base = get_base,
    .init_tensor = init_tensor,
    .memset_tensor = memset_tensor,
    .set_tensor = set_tensor,
    .get_tensor = get_tensor,
    .clear = clear,
};

static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buffer_type, size_t size) {
    buffer *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    pthread_mutex_init(&b->lock, NULL);
    b->size = size;
    void *addresses =
        mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    b->addresses = addresses == MAP_FAILED ? NULL : addresses;
    ccmem_status status = CCMEM_ERR_NOMEM;
    if (b->addresses)
        status = ccmem_arena_new(key, CCMEM_AEGIS_128X2, PAGE, 0, 0, CCMEM_FRESH_ONCE, &b->once);
    ggml_backend_buffer_t made = NULL;
    if (status == CCMEM_OK)
        made = host.buffer_init(buffer_type, buffer_functions, b, size);
    if (!made) {
        host.log(GGML_LOG_LEVEL_ERROR, "pyccmem: no buffer of %zu bytes: %s\n", size,
                 ccmem_status_text(status));
        drop(b);
        return NULL;
    }
    pthread_mutex_lock(&all_lock);
    b->next = all;
    all = b;
    pthread_mutex_unlock(&all_lock);
    return made;
}

static const char *get_name(ggml_backend_buffer_type_t buffer_type) {
    (void)buffer_type;
    return "pyccmem";
}

static size_t get_alignment(ggml_backend_buffer_type_t buffer_type) {
    (void)buffer_type;
    return ALIGNMENT;
}

ggml_backend_buffer_type_t weights_buffer_type(ggml_backend_dev_t device) {
    if (!type.device)
        type = (struct ggml_backend_buffer_type){
            .iface = {.get_name = get_name,
                      .alloc_buffer = alloc_buffer,
                      .get_alignment = get_alignment},
            .device = device,
        };
    return &type;
}

uint8_t *weights_ciphertext(const char *name, uint64_t *nbytes) {
    uint8_t *found = NULL;
    pthread_mutex_lock(&all_lock);
    for (buffer *b = all; b && !found; b = b->next) {
        pthread_mutex_lock(&b->lock);
        for (weight *w = b->weights; w && !found; w = w->next)
            if (w->store && strcmp(w->name, name) == 0) {
                ccmem_mapping *mapping = ccmem_store_mapping(w->store);
                found = (uint8_t *)ccmem_mapping_data(mapping);
                *nbytes = ccmem_mapping_size(mapping);
                ccmem_mapping_release(mapping);
            }
        pthread_mutex_unlock(&b->lock);
    }
    pthread_mutex_unlock(&all_lock);
    return found;
}
