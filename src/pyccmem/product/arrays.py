# SPDX-License-Identifier: Apache-2.0
"""Products of NumPy's arrays with an encrypted matrix.

float32 products with the matrix's rows are native. Products of other types, and products with its
columns, go to NumPy's BLAS, a tile of the matrix at a time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import ffi, wiped
from ..core.block_matrix import BlockMatrix
from ..core.dtypes import NATIVE, name_of
from ..core.matrix import Matrix
from ..core.store import handle
from . import native
from .blas import Blas, Block
from .tiles import Framework, Product, multiply

__all__ = ["columns", "multiplied", "rows", "rowwise"]

Array = npt.NDArray[Any]

#: The zeros that overwrite the BLAS's buffers, by type, as many as were needed so far. They are
#: kept, because fresh memory would cost more than the product.
_zeros: dict[np.dtype[Any], Array] = {}


def _multiply_zeros(
    dtype: np.dtype[Any], rows: int, inputs: int, outputs: int, transposed: bool
) -> None:
    left, right = rows * inputs, inputs * outputs
    zeros = _zeros.get(dtype)
    if zeros is None or len(zeros) < left + right:
        zeros = _zeros[dtype] = np.zeros(left + right, dtype)
        zeros.flags.writeable = False
    matrix = zeros[left : left + right]
    np.matmul(
        zeros[:left].reshape(rows, inputs),
        matrix.reshape(outputs, inputs).T if transposed else matrix.reshape(inputs, outputs),
    )


class _NumPy(Framework):
    blas = Blas(_multiply_zeros)
    single = np.dtype(np.float32)

    def view(self, memory: Any, dtype: Any, rows: int, cols: int) -> Array:
        array: Array = np.ndarray((rows, cols), dtype, memory)
        return array

    def convert(self, target: Array, source: Array) -> None:
        np.copyto(target, source, casting="unsafe")


_NUMPY = _NumPy()


class _Rows(Product):
    """out = x · Wᵀ."""

    def __init__(self, x: Array, out: Array) -> None:
        self._x, self._out = x, out

    def take(self, at: int, tile: Array) -> None:
        np.matmul(self._x, tile.T, out=self._out[:, at : at + len(tile)])

    def discard(self) -> None:
        self._out[...] = 0


class _Columns(Product):
    """out = x · W: adds each tile's product to `out`."""

    def __init__(self, x: Array, out: Array) -> None:
        self._x, self._out, self._part = x, out, np.empty_like(out)

    def take(self, at: int, tile: Array) -> None:
        np.matmul(self._x[:, at : at + len(tile)], tile, out=self._part)
        self._out += self._part

    def discard(self) -> None:
        self._out[...] = self._part[...] = 0


def rows(
    x: Array,
    matrix: Matrix | BlockMatrix,
    dtype: np.dtype[Any],
    bias: Array | None = None,
    scale: Array | None = None,
    *,
    secret: bool,
) -> Array:
    """Returns x · Wᵀ * scale + bias for x of shape (..., W.cols), of type `dtype`. `secret`: x was
    encrypted. Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError."""
    lines = _lines(x, matrix.cols, dtype)
    out = np.empty((len(lines), matrix.rows), dtype)
    if not matrix.cols:
        out[...] = 0
    if isinstance(matrix, BlockMatrix) and dtype == np.float32 and scale is None:
        if out.size and matrix.cols:
            native.block_rows(matrix, _floats(lines), len(lines), _floats(out), _floats(bias))
        else:
            handle(matrix.store)
            if bias is not None:
                out[...] = bias
        return out.reshape(*x.shape[:-1], matrix.rows)
    code = _native_code(matrix) if dtype == np.float32 else None
    if code is not None and isinstance(matrix, Matrix):
        # The buffers exist only as arguments, so that no traceback keeps one.
        native.rows(
            matrix,
            code,
            _floats(lines),
            len(lines),
            _floats(out),
            _floats(bias),
            _floats(scale),
        )
    else:
        handle(matrix.store)
        if out.size:
            product = _Rows(lines, out)
            multiply(_NUMPY, matrix, dtype, len(lines), product, transposed=True, secret=secret)
        for operation, vector in ((np.multiply, scale), (np.add, bias)):
            if vector is not None and out.size:
                rowwise(operation, out, vector)
    return out.reshape(*x.shape[:-1], matrix.rows)


def _native_code(matrix: Matrix | BlockMatrix) -> int | None:
    """Returns the number by which native products know the type of the matrix's elements; None for
    types that they do not take."""
    if isinstance(matrix, BlockMatrix) or not matrix.dtype.isnative:
        return None
    return NATIVE.get(name_of(matrix.dtype))


def columns(x: Array, matrix: Matrix | BlockMatrix, dtype: np.dtype[Any], *, secret: bool) -> Array:
    """Returns x · W for x of shape (..., W.rows), of type `dtype`; otherwise as rows()."""
    lines = _lines(x, matrix.rows, dtype)
    out = np.zeros((len(lines), matrix.cols), dtype)
    handle(matrix.store)
    if out.size:
        product = _Columns(lines, out)
        multiply(_NUMPY, matrix, dtype, len(lines), product, transposed=False, secret=secret)
    return out.reshape(*x.shape[:-1], matrix.cols)


def multiplied(left: Array, right: Array) -> Array:
    """Returns np.matmul() of two arrays of which at least one was encrypted. Raises ValueError."""
    product: Array = np.matmul(left, right)
    if left.ndim > 1 and right.ndim > 1:
        block = Block(_NUMPY.blas)
        inputs, outputs = right.shape[-2:]
        block.used(product.dtype, left.shape[-2], inputs, outputs, transposed=False)
        block.end()
    return product


def _lines(x: Array, width: int, dtype: np.dtype[Any]) -> Array:
    """Returns x as a C-contiguous matrix of `dtype` with `width` columns: x itself if it is one,
    else a copy in memory that is wiped, because x may be the plaintext of an encrypted tensor."""
    shape = (math.prod(x.shape[:-1]), width)
    if x.flags.c_contiguous and x.dtype == dtype:
        return x.reshape(shape)
    lines = wiped.empty(shape, dtype)
    np.copyto(lines.reshape(x.shape), x, casting="unsafe")
    return lines


def _floats(array: Array | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer("float[]", array.reshape(-1))


def rowwise(operation: np.ufunc, x: Array, values: Array) -> None:
    """Applies x = operation(x, values) in place, for values of shape (width,) and x of shape (...,
    width), C-contiguous.

    Does not broadcast, because NumPy may then repeat the values in a buffer of its own on the heap,
    which is not wiped. Repeats them in memory that is wiped.
    """
    width = x.shape[-1]
    lines = x.reshape(-1, width)
    tile = wiped.empty((max(1, min(len(lines), _ROWWISE_ITEMS // max(width, 1))), width), x.dtype)
    tile[...] = values
    for start in range(0, len(lines), len(tile)):
        part = lines[start : start + len(tile)]
        operation(part, tile[: len(part)], out=part)


#: Elements of the repeated values, so few that they stay in L2.
_ROWWISE_ITEMS = 1 << 15
