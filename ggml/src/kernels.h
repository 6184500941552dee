/* SPDX-License-Identifier: Apache-2.0
 * The dot products of ggml's CPU backend, for the types that it multiplies without conversion to
 * float32. */
#ifndef PYCCMEM_GGML_KERNELS_H
#define PYCCMEM_GGML_KERNELS_H

#include "ggml-cpu.h"
#include "host.h"

typedef struct dot_kernel {
    ggml_vec_dot_t dot;           /* of a row of the matrix and a converted row of x */
    ggml_from_float_t from_float; /* converts a row of x */
    size_t unit, unit_bytes;      /* elements and bytes of a block of a converted row */
} dot_kernel;

/* Finds the kernel for a type; false: there is none, or this program's CPU backend does not show
 * it. */
bool kernels_find(enum ggml_type type, dot_kernel *out);

#endif
