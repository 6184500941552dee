# SPDX-License-Identifier: Apache-2.0
"""Blocks in plain memory become float32, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import ffi, wiped
from ..binding.arguments import plain_array
from ..core.block_formats import BlockFormat, format_named
from ..core.block_matrix import dequantize
from .making import checked_source, packed_rows

__all__ = ["dequantize_blocks", "quantize_blocks", "quantize_rows"]


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
    packed = plain_array("blocks", blocks)
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


def quantize_blocks(array: npt.ArrayLike, format: str | BlockFormat) -> npt.NDArray[Any]:
    """Returns the blocks of an array of real numbers, of shape (..., cols), as uint8 of shape (...,
    row bytes), in memory that is wiped when it is freed. Of each block the scales are searched for
    by least squares, so that its error is no larger than that of ggml's own quantisers without an
    importance matrix. Numbers are converted to float32 first.

    Raises ArgumentError for an unknown format, for a last dimension that is no whole number of
    blocks, for "int8_row", whose scales are apart (see quantize_rows()), and for a number that is
    infinite or not one, whose place it names; ArgumentTypeError, OutOfMemoryError.
    """
    kind = format_named(format)
    if kind.scaled_rows:
        raise errors.ArgumentError(f"{kind} has a scale for each row; use quantize_rows().")
    return packed_rows(kind, checked_source(array))[0]


def quantize_rows(array: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns the rows of an array of shape (..., cols) as signed bytes from -127 to 127, and a
    float32 scale for each row, of shape (...): the blocks of "int8_row". Raises as
    quantize_blocks()."""
    packed, scale = packed_rows(format_named("int8_row"), checked_source(array))
    assert scale is not None
    return packed.view(np.int8), scale


def _at(array: npt.NDArray[Any], kind: str) -> Any:
    """Returns the array's address: no buffer, which a traceback could keep."""
    return ffi.cast(kind, array.ctypes.data)
