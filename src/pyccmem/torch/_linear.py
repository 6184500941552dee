# SPDX-License-Identifier: Apache-2.0
"""Products of plain torch tensors with an encrypted matrix.

Products with the matrix's rows are pyccmem's native ones. Products of float64, and with the
matrix's columns, are torch's own, a tile of the matrix at a time. For float16 and bfloat16,
products and sums are float32 and rounded once, at the end. With quantised blocks x is rounded to 8
bits, see docs/design/quantized-products.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..binding import OK, ffi, lib
from ..binding.owned import pointer_to
from ..core.block_matrix import BlockMatrix
from ..core.matrix import Matrix
from ..core.store import fail, handle
from ..product import native
from ..product.tiles import Framework, Product, multiply
from ._blas import BLAS
from ._blocks import OrderedMatrix
from ._results import as_type, converted, in_order, new_result
from ._stored import Stored
from .dtypes import NATIVE

#: What a product multiplies with.
AnyMatrix = Matrix | BlockMatrix | OrderedMatrix

__all__ = ["AnyMatrix", "columns", "rows", "rows_of_one_type"]

_cast = ffi.cast
_FLOATS = ffi.typeof("float *")
_NULL = ffi.NULL
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_SINGLE = torch.float32


#: Types that the native product takes as they are, when x, W, bias and result all have the same.
_TYPED = {torch.float32: lib.CCMEM_F32, torch.bfloat16: lib.CCMEM_BF16}
_typed = lib.ccmem_store_linear_parts
_new = ffi.new
_BIAS = ffi.typeof("ccmem_bias *")
_PARTS = ffi.typeof("ccmem_part[]")
_POINTER = ffi.typeof("void *")
_NO_BIAS = {kind: _new(_BIAS, (_NULL, _NULL, 0, code)) for kind, code in _TYPED.items()}


def rows_of_one_type(
    x: Tensor, parts: Sequence[Stored], bias: Tensor | Stored | None
) -> Tensor | None:
    """Returns x · matrixᵀ + bias by one native call, for the most common case in models: a plain
    contiguous x, and all of one type. The matrix is `parts`, at least one, one below the other.
    None, with nothing done, for any other case.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError.
    """
    kind = parts[0].dtype
    code = _TYPED.get(kind)
    shape = x.shape
    if code is None or x.dtype is not kind or x.layout is not torch.strided or not shape:
        return None
    width, height, wipe = shape[-1], 0, False
    opened, found = [], []
    for stored in parts:
        matrix = stored.matrix
        if matrix is None or matrix.cols != width or stored.dtype is not kind:
            return None
        native = handle(matrix.store)
        opened.append(native)  # kept here, because a field of a struct does not keep it alive
        found.append((pointer_to(native), matrix.offset, matrix.rows))
        height += matrix.rows
        wipe = wipe or stored.wipe_results
    if not x.is_cpu or not x.is_contiguous() or x.is_neg():
        return None
    count = x.numel() // width if width else 0
    if not count or not height:
        return None
    added = _NO_BIAS[kind]
    if isinstance(bias, Stored):
        if bias.format is not None or bias.dtype is not kind or bias.core.shape != (height,):
            return None
        wipe = wipe or bias.wipe_results
        its_store, its_offset = bias.place()
        native = handle(its_store)
        opened.append(native)
        added = _new(_BIAS, (_NULL, pointer_to(native), its_offset, code))
    elif bias is not None:
        if not (
            type(bias) in _PLAIN
            and bias.dtype is kind
            and bias.shape == (height,)
            and bias.is_cpu
            and bias.layout is torch.strided
            and bias.is_contiguous()
        ):
            return None
        added = _new(_BIAS, (_cast(_POINTER, bias.data_ptr()), _NULL, 0, code))
    out = new_result((*shape[:-1], height), kind, wipe)
    status = _typed(
        _new(_PARTS, found),
        len(found),
        code,
        width,
        _cast(_POINTER, x.data_ptr()),
        code,
        count,
        added[0],
        _cast(_POINTER, out.data_ptr()),
        code,
    )
    if status != OK:
        _fail(x, parts, bias, height, status)
    return out


def _fail(
    x: Tensor, parts: Sequence[Stored], bias: Tensor | Stored | None, height: int, status: int
) -> NoReturn:
    """Raises the error of what made a product fail: the bias, if it cannot be opened, or one of
    several parts, if its own product fails, or the first."""
    if isinstance(bias, Stored):
        bias.opened_run(bias.core, 0, height)
    if len(parts) > 1:
        for stored in parts:
            rows_of_one_type(x, (stored,), None)
    matrix = parts[0].matrix
    assert matrix is not None, "there was a product with it"
    fail(matrix.store, status, matrix.offset, matrix.nbytes)


def _sum_type(x: torch.dtype, matrix: Matrix | BlockMatrix) -> torch.dtype:
    """Returns the type in which a product is summed."""
    own = None if isinstance(matrix, BlockMatrix) else matrix.dtype
    return torch.float64 if torch.float64 in (x, own) else _SINGLE


def rows(
    x: Tensor,
    matrix: AnyMatrix,
    bias: Tensor | None,
    result: torch.dtype,
    *,
    wipe: bool = False,
) -> Tensor:
    """Returns x · matrixᵀ + bias, of shape (..., height) and type `result`, for a plain real
    floating x of shape (..., width). `wipe` puts the result, and x if it has to be converted, into
    memory that is wiped when it is freed.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError, PlaintextBudgetError, and then
    returns no part of the result.
    """
    height, width = matrix.rows, matrix.cols
    shape = x.shape[:-1]
    count = math.prod(shape)
    if isinstance(matrix, OrderedMatrix):
        arranged = new_result(tuple(x.shape), x.dtype, wipe)
        torch.index_select(x, -1, matrix.numbers(), out=arranged)
        return rows(arranged, matrix.matrix, bias, result, wipe=wipe)
    kind = _sum_type(x.dtype, matrix)
    if isinstance(matrix, BlockMatrix) and kind is _SINGLE and count and height and width:
        return _block_rows(x, matrix, bias, result, wipe)
    x = in_order(as_type(x, kind, wipe), wipe)
    if bias is not None and (bias.dtype is not kind or not bias.is_contiguous()):
        bias = converted(bias, kind)  # it may have been encrypted
    if kind is _SINGLE and not isinstance(matrix, BlockMatrix):
        out = new_result((*shape, height), _SINGLE, wipe)
        native.rows(
            matrix,
            NATIVE[matrix.dtype],
            _cast(_FLOATS, x.data_ptr()),
            count,
            _cast(_FLOATS, out.data_ptr()),
            bias=_NULL if bias is None else _cast(_FLOATS, bias.data_ptr()),
        )
        return as_type(out, result, wipe)
    out = new_result((*shape, height), result, wipe)
    if not count or not height:
        handle(matrix.store)
    elif not width:
        out.zero_()
        if bias is not None:
            out.add_(bias)
    else:
        product = _Rows(x.view(count, width), bias, out.view(count, height), wipe)
        multiply(_TORCH, matrix, kind, count, product, transposed=True)
    return out


def _block_rows(
    x: Tensor, matrix: BlockMatrix, bias: Tensor | None, result: torch.dtype, wipe: bool
) -> Tensor:
    """rows() for blocks, summed in float32. x, bias and result of float32 and bfloat16 are taken as
    they are: a conversion of its own would read and write a prompt's activations once more."""
    x = in_order(x if x.dtype in _TYPED else as_type(x, _SINGLE, wipe), wipe)
    if bias is not None and (bias.dtype not in _TYPED or not bias.is_contiguous()):
        bias = converted(bias, _SINGLE)
    own = result if result in _TYPED else _SINGLE
    out = new_result((*x.shape[:-1], matrix.rows), own, wipe)
    native.block_rows(
        matrix,
        _cast(_POINTER, x.data_ptr()),
        x.numel() // matrix.cols,
        _cast(_POINTER, out.data_ptr()),
        _NULL if bias is None else _cast(_POINTER, bias.data_ptr()),
        native.Types(_TYPED[x.dtype], _TYPED[own], _TYPED[_SINGLE if bias is None else bias.dtype]),
    )
    return as_type(out, result, wipe)


def columns(
    x: Tensor,
    matrix: AnyMatrix,
    bias: Tensor | None,
    result: torch.dtype,
    *,
    wipe: bool = False,
) -> Tensor:
    """Returns x · matrix + bias, of shape (..., width) and type `result`, for a plain real floating
    x of shape (..., height). Has `wipe`, and raises, as rows() does."""
    if isinstance(matrix, OrderedMatrix):
        found = columns(x, matrix.matrix, None, result, wipe=wipe)
        out = new_result(tuple(found.shape), result, wipe)
        out.index_copy_(-1, matrix.numbers(), found)
        return out if bias is None else out.add_(bias)
    height, width = matrix.rows, matrix.cols
    shape = x.shape[:-1]
    count = math.prod(shape)
    kind = _sum_type(x.dtype, matrix)
    x = in_order(as_type(x, kind, wipe), wipe)
    out = new_result((*shape, width), kind, wipe)
    if bias is None:
        out.zero_()
    else:
        out.copy_(bias)
    if count and height and width:
        product = _Columns(x.view(count, height), out.view(count, width))
        multiply(_TORCH, matrix, kind, count, product, transposed=False)
    else:
        handle(matrix.store)
    return as_type(out, result, wipe)


# ---- tiles ---------------------------------------------------------------------------------------


class _Torch(Framework):
    blas = BLAS
    single = torch.float32
    tiles_by_threads = False

    def view(self, memory: Any, dtype: Any, rows: int, cols: int) -> Tensor:
        return torch.frombuffer(memory, dtype=dtype).view(rows, cols)

    def convert(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)


_TORCH = _Torch()


class _Rows(Product):
    """out = x · matrixᵀ + bias in x's type, rounded to out's type."""

    def __init__(self, x: Tensor, bias: Tensor | None, out: Tensor, wipe: bool) -> None:
        self._x, self._bias, self._out, self._wipe = x, bias, out, wipe
        self._part: Tensor | None = None

    def take(self, at: int, tile: Tensor) -> None:
        n, x, out = len(tile), self._x, self._out[:, at : at + len(tile)]
        target = out
        if out.dtype is not x.dtype:
            if self._part is None:  # the first tile has the most rows
                self._part = new_result((len(x), n), x.dtype, self._wipe)
            target = self._part[:, :n]
        if self._bias is None:
            torch.mm(x, tile.t(), out=target)
        else:
            torch.addmm(self._bias[at : at + n], x, tile.t(), out=target)
        if target is not out:
            out.copy_(target)

    def discard(self) -> None:
        self._out.zero_()
        if self._part is not None:
            self._part.zero_()


class _Columns(Product):
    """out += x · matrix."""

    def __init__(self, x: Tensor, out: Tensor) -> None:
        self._x, self._out = x, out

    def take(self, at: int, tile: Tensor) -> None:
        self._out.addmm_(self._x[:, at : at + len(tile)], tile)

    def discard(self) -> None:
        self._out.zero_()
