/* SPDX-License-Identifier: Apache-2.0
 * The operations of ggml's graphs that are computed with encrypted weights. */
#ifndef PYCCMEM_GGML_OPS_H
#define PYCCMEM_GGML_OPS_H

#include "weights.h"

/* Whether ops_compute() can do it: also before its tensors have memory. */
bool ops_supported(const struct ggml_tensor *node);

/* Computes the node. On failure all that it gives is zeros. Errors of ccmem_store_linear(). */
ccmem_status ops_compute(struct ggml_tensor *node);

#endif
