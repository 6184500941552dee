# SPDX-License-Identifier: Apache-2.0
"""The native products with an encrypted matrix: a few pages at a time are opened into a cache, or
into registers, and multiplied there."""

from __future__ import annotations

from typing import Any

from ..binding import OK, ffi, lib
from ..core.block_matrix import BlockMatrix, fail_rows, open_scales
from ..core.matrix import Matrix
from ..core.store import fail, handle

__all__ = ["block_rows", "rows"]

_linear = lib.ccmem_store_linear
_linear_blocks = lib.ccmem_store_linear_blocks
_NULL = ffi.NULL


def rows(
    matrix: Matrix,
    native: int,
    x: Any,
    count: int,
    out: Any,
    bias: Any = _NULL,
    scale: Any = _NULL,
) -> None:
    """Computes out = x · matrixᵀ * scale + bias for `count` rows of x. `native` is the number of
    the matrix's type; x, out, bias and scale are pointers to float32 in C order.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError; all of `out` is zeros then.
    """
    store, offset, height, width, _ = matrix
    try:
        status = _linear(
            handle(store), offset, native, height, width, scale, x, count, width, bias, out, height
        )
    finally:
        del x, out, bias, scale  # they may be buffers, which no traceback must keep; see arguments
    if status != OK:
        fail(store, status, offset, matrix.nbytes)


def block_rows(matrix: BlockMatrix, x: Any, count: int, out: Any, bias: Any = _NULL) -> None:
    """Computes out = x · matrixᵀ + bias for `count` rows of x and a matrix of quantised blocks; x,
    out and bias are as for rows(). x is quantised to 8 bits (docs/design/quantized-products.md).
    Raises as rows() does."""
    try:
        scales = open_scales(matrix)
        scale = _NULL if scales is None else ffi.cast("float *", scales.ctypes.data)
        status = _linear_blocks(
            handle(matrix.store),
            matrix.offset,
            matrix.format.native,
            matrix.rows,
            matrix.cols,
            scale,
            x,
            count,
            bias,
            out,
        )
    finally:
        del x, out, bias
    if status != OK:
        fail_rows(matrix, status)
