/* SPDX-License-Identifier: Apache-2.0
 * Buffers whose tensors are encrypted stores: the buffer type "pyccmem". */
#ifndef PYCCMEM_GGML_WEIGHTS_H
#define PYCCMEM_GGML_WEIGHTS_H

#include "ccmem.h"
#include "host.h"

/* Where a tensor's first byte lies. */
typedef struct weight_place {
    ccmem_store *store;
    uint64_t offset;
} weight_place;

/* Makes the key that all buffers of this process derive theirs from. Returns false, and says why,
 * if it cannot be had. */
bool weights_start(void);

/* The buffer type, of this device from the first call on. */
ggml_backend_buffer_type_t weights_buffer_type(ggml_backend_dev_t device);

/* Whether the tensor lies in such a buffer, or is a view of one that does. */
bool weights_hold(const struct ggml_tensor *tensor);

/* Finds the tensor's store. CCMEM_ERR_CLOSED: nothing was written to it, or it could not be
 * encrypted. */
ccmem_status weights_find(const struct ggml_tensor *tensor, weight_place *place);

/* The ciphertext of the tensor with this name, in all buffers the one made last, and how many bytes
 * it has; NULL if there is none. For tests, which change it. */
uint8_t *weights_ciphertext(const char *name, uint64_t *nbytes);

#endif
