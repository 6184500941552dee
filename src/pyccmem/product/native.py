# SPDX-License-Identifier: Apache-2.0
"""The native products with an encrypted matrix: a few pages at a time are opened into a cache, or
into registers, and multiplied there."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..binding import OK, ffi, lib
from ..core.block_matrix import BlockMatrix, fail_rows, open_scales
from ..core.matrix import Matrix
from ..core.store import fail, handle

__all__ = ["Types", "block_rows", "rows"]

_linear = lib.ccmem_store_linear
_linear_blocks = lib.ccmem_store_linear_blocks_typed
_NULL = ffi.NULL
_F32 = lib.CCMEM_F32
_BIAS = ffi.typeof("ccmem_bias *")


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


class Types(NamedTuple):
    """The native numbers of the types of x, out and bias: float32 or bfloat16 each."""

    x: int = _F32
    out: int = _F32
    bias: int = _F32


def block_rows(
    matrix: BlockMatrix,
    x: Any,
    count: int,
    out: Any,
    bias: Any = _NULL,
    types: Types = Types(),  # noqa: B008 (immutable)
) -> None:
    """Computes out = x · matrixᵀ + bias for `count` rows of x and a matrix of quantised blocks; x,
    out and bias are pointers in C order to what `types` says. x is quantised to 8 bits, sums are
    float32 and rounded once more for bfloat16 (docs/design/quantized-products.md). Raises as rows()
    does."""
    try:
        scales = open_scales(matrix)
        scale = _NULL if scales is None else ffi.cast("float *", scales.ctypes.data)
        added = ffi.new(_BIAS, (bias, _NULL, 0, types.bias))
        status = _linear_blocks(
            handle(matrix.store),
            matrix.offset,
            matrix.format.native,
            matrix.rows,
            matrix.cols,
            scale,
            x,
            types.x,
            count,
            added[0],
            out,
            types.out,
        )
    finally:
        del x, out, bias
    if status != OK:
        fail_rows(matrix, status)
