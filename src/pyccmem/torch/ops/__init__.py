# SPDX-License-Identifier: Apache-2.0
"""What is done with an EncryptedTensor, by kind; each module registers its handlers.

plan          how an operation without a handler is treated
views         a step more on the path
copies        copies and conversions: encrypted
writes        opened, done, encrypted again
products      by tiles, or in the native kernels
rows          only the rows asked for
elementwise   functions of a forward pass, opened without a detour
memory        devices, gradients, addresses, arrays
compiled      the operators that torch.compile puts into a program
common        what they share; what has no handler is opened into a temporary
"""

from __future__ import annotations

from . import compiled, copies, elementwise, memory, plan, products, rows, views, writes

__all__ = [
    "compiled",
    "copies",
    "elementwise",
    "memory",
    "plan",
    "products",
    "rows",
    "views",
    "writes",
]
