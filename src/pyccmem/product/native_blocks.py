# SPDX-License-Identifier: Apache-2.0
"""The native product with an encrypted matrix of quantised blocks, which multiplies whole numbers
where the blocks are opened."""

from __future__ import annotations

from typing import Any

from ..binding import OK, ffi, lib, wiped
from ..core.block_matrix import BlockMatrix
from ..core.store import fail, handle

__all__ = ["block_rows"]

_linear = lib.ccmem_store_linear_blocks
_NULL = ffi.NULL
_FLOATS = ffi.typeof("float *")


def block_rows(matrix: BlockMatrix, x: Any, count: int, out: Any, bias: Any = _NULL) -> None:
    """Computes out = x · matrixᵀ + bias for `count` rows of x, which are quantised to 8 bits on the
    way; docs/design/quantized-products.md states the bound. x, out and bias are pointers to float32
    in C order. The scales of "int8_row" are opened for the call, in memory that is wiped.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError; all of `out` is zeros then.
    """
    store, height = matrix.store, matrix.rows
    scale, memory = _NULL, None
    try:
        if matrix.scale is not None and height:
            scale, memory = _scales(matrix)
        status = _linear(
            handle(store),
            matrix.offset,
            matrix.format.native,
            height,
            matrix.cols,
            scale,
            x,
            count,
            bias,
            out,
        )
    finally:
        if memory is not None:
            wiped.wipe(memory)
        del x, out, bias, scale  # they may be buffers, which no traceback must keep; see arguments
    if status != OK:
        fail(store, status, matrix.offset, matrix.nbytes)


def _scales(matrix: BlockMatrix) -> tuple[Any, Any]:
    """Returns the scales of the rows: a pointer, and the buffer that keeps them alive."""
    assert matrix.scale is not None
    store, offset = matrix.scale
    pointer, memory = wiped.block(4 * matrix.rows)
    status = lib.ccmem_store_read(handle(store), offset, pointer, 4 * matrix.rows)
    if status != OK:
        fail(store, status, offset, 4 * matrix.rows)
    return ffi.cast(_FLOATS, pointer), memory
