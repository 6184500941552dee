/* SPDX-License-Identifier: Apache-2.0
 * The probe of the portable tier. */
#include "kernels/probe_template.h"

LOAD(load64, __attribute__((noinline)), uint64_t, "r")

const probe_ops probe_portable = {.load = load64};
