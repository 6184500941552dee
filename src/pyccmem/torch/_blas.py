# SPDX-License-Identifier: Apache-2.0
"""Describes torch's BLAS, and what else in torch keeps plaintext, so that product.blas can
overwrite it.

Intel's MKL, which is in torch's x86 builds, has a function that frees its buffers. It also packs
matrices on the stacks of its threads. oneDNN frees its own memory. Another BLAS is cleared by
products of zeros.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch

from ..product.blas import Blas
from ._threads import wipe_stacks

__all__ = ["BLAS"]


def _find_free_buffers() -> Callable[[], Any] | None:
    """MKL's function that frees its buffers, or None without MKL."""
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    for place in (library, None):
        for name in ("mkl_serv_free_buffers", "mkl_free_buffers", "MKL_Free_Buffers"):
            try:
                found = getattr(ctypes.CDLL(place), name)
            except (OSError, AttributeError):
                continue
            found.argtypes, found.restype = [], None
            return found  # type: ignore[no-any-return]
    return None


def _multiply_zeros(dtype: Any, rows: int, inputs: int, outputs: int, transposed: bool) -> None:
    left = torch.zeros(rows, inputs, dtype=dtype)
    if transposed:
        torch.mm(left, torch.zeros(outputs, inputs, dtype=dtype).t())
    else:
        torch.mm(left, torch.zeros(inputs, outputs, dtype=dtype))


BLAS = Blas(
    _multiply_zeros,
    free_buffers=_find_free_buffers(),
    wipe_stacks=wipe_stacks,
    frees=True,
)
