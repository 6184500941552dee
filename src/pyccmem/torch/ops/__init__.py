# SPDX-License-Identifier: Apache-2.0
"""The operations on an EncryptedTensor, by kind. Each module registers its handlers.

plan          how an operation without a handler is treated
views         one more step on the path
copies        copies and conversions: encrypted
writes        opened, done, encrypted again
products      by tiles, or in the native kernels
experts       of a stack of matrices those that are asked for
rows          only the rows that are needed
elementwise   functions of a forward pass, opened without the dispatcher
assign        other data for a tensor: `.data`, set_(), resize_()
gradients     asked for, and refused when there is one
memory        devices, addresses, arrays
compiled      the operators that torch.compile puts into programs
common        what they share; operations without a handler open into a temporary
"""

from __future__ import annotations

from . import (
    assign,
    compiled,
    copies,
    elementwise,
    experts,
    gradients,
    memory,
    plan,
    products,
    rows,
    views,
    writes,
)

__all__ = [
    "assign",
    "compiled",
    "copies",
    "elementwise",
    "experts",
    "gradients",
    "memory",
    "plan",
    "products",
    "rows",
    "views",
    "writes",
]
