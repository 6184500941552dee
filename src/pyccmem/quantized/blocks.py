# SPDX-License-Identifier: Apache-2.0
"""Blocks in plain memory become float32, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import ffi, wiped
from ..core.block_formats import BlockFormat, format_named
from ..core.block_matrix import dequantize

__all__ = ["dequantize_blocks"]


def dequantize_blocks(blocks: npt.ArrayLike, format: str | BlockFormat) -> npt.NDArray[Any]:
    """Returns the elements of blocks in plain memory, an array of uint8 of shape (..., row bytes),
    as float32 of shape (..., elements of a row), in memory that is wiped when it is freed.
    "int8_row": the whole numbers, without the scale that lies elsewhere.

    The numbers are to the bit those of gguf's Python package (but for the bits of what is not a
    number). Neither branches nor addresses depend on what is in the blocks.

    Raises ArgumentError for an unknown format and for rows that are no whole number of blocks,
    ArgumentTypeError for what is no array of bytes, OutOfMemoryError.
    """
    kind = format_named(format)
    packed = np.asarray(blocks)
    if packed.dtype.kind not in "ui" or packed.dtype.itemsize != 1:
        raise errors.ArgumentTypeError(f"blocks is of {packed.dtype}; it must hold uint8.")
    if not packed.ndim or packed.shape[-1] % kind.nbytes:
        raise errors.ArgumentError(
            f"blocks has shape {packed.shape}; its last dimension must be a multiple of "
            f"{kind.nbytes}, the bytes of a {kind} block."
        )
    cols = packed.shape[-1] // kind.nbytes * kind.elements
    out = wiped.empty((*packed.shape[:-1], cols), np.float32)
    if out.size:
        source = np.ascontiguousarray(packed)
        count = source.size // kind.nbytes
        dequantize(kind, _at(source, "uint8_t *"), count, _at(out, "float *"))
    return out


def _at(array: npt.NDArray[Any], kind: str) -> Any:
    """Returns the array's address: no buffer, which a traceback could keep."""
    return ffi.cast(kind, array.ctypes.data)
