# SPDX-License-Identifier: Apache-2.0
"""The parts of guard(), each found by looking at the process as it is now."""

from __future__ import annotations

from . import memory, process, swap
from .part import Part

__all__ = ["Part", "parts"]


def parts() -> tuple[Part, ...]:
    """Returns all parts of guard() as they are now, whoever brought them about: freed blocks are
    looked at, settings are read back."""
    return (
        memory.freed_memory(),
        memory.small_blocks(),
        memory.python_objects(),
        memory.numpy_memory(),
        memory.torch_memory(),
        process.core_dumps(),
        process.dumpable(),
        process.ptrace(),
        swap.swap(),
        process.fork(),
        process.dontdump(),
    )
