# SPDX-License-Identifier: Apache-2.0
"""Products of plain torch tensors with an encrypted matrix.

Those with the matrix's rows are pyccmem's native product's. Those of float64, and with its columns,
are torch's own, a tile of the matrix at a time. Products and sums of float16 and bfloat16 are
float32 and rounded once, at the end.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _plain
from .._lib import OK, ffi, lib
from .._owned import pointer_to
from ..tensor import EncryptedTensor as Core
from . import _blas
from ._stored import NATIVE, Stored, converted

__all__ = ["Matrix", "columns", "rows", "rows_of_one_type"]

#: Bytes of the matrix in the clear at a time where torch multiplies, in the type of the product.
TILE_BYTES = 2 << 20

#: ... and from MANY_ROWS of x on: a BLAS copies x anew for each tile.
MANY_ROWS = 256
LARGE_TILE_BYTES = 4 << 20

_linear = lib.ccmem_store_linear
_read = lib.ccmem_store_read
_cast = ffi.cast
_FLOATS = ffi.typeof("float *")
_NULL = ffi.NULL
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_SINGLE = torch.float32
_HALVES = frozenset((torch.float16, torch.bfloat16))


class Matrix(NamedTuple):
    """An encrypted matrix of shape (height, width), from byte `offset` of its core's buffer."""

    core: Core
    offset: int
    height: int
    width: int
    dtype: torch.dtype


#: Types of x, W, bias and result, all the same, that the native product takes as they are.
_TYPED = {torch.float32: lib.CCMEM_F32, torch.bfloat16: lib.CCMEM_BF16}
_typed = lib.ccmem_store_linear_typed
_new = ffi.new
_BIAS = ffi.typeof("ccmem_bias *")
_POINTER = ffi.typeof("void *")
_NO_BIAS = {kind: _new(_BIAS, (_NULL, _NULL, 0, code)) for kind, code in _TYPED.items()}


def rows_of_one_type(x: Tensor, stored: Stored, bias: Tensor | Stored | None) -> Tensor | None:
    """x · matrixᵀ + bias in one native call, for the case that most models consist of: a plain
    contiguous x, all of one type. None for any other, and nothing was done then.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError.
    """
    core = stored.core
    form = core._shape
    kind = stored.dtype
    code = _TYPED.get(kind)
    if code is None or len(form) != 2 or x.dtype is not kind or x.layout is not torch.strided:
        return None
    height, width = form
    shape = x.shape
    if not shape or shape[-1] != width or not x.is_cpu or not x.is_contiguous() or x.is_neg():
        return None
    count = x.numel() // width if width else 0
    if not count or not height:
        return None
    added = _NO_BIAS[kind]
    other = None
    if isinstance(bias, Stored):
        other = bias.core
        if bias.dtype is not kind or other._shape != (height,):
            return None
        store = other._opened()
        added = _new(_BIAS, (_NULL, pointer_to(store), other._offset, code))
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
    out = torch.empty((*shape[:-1], height), dtype=kind)
    status = _typed(
        core._opened(),
        core._offset,
        code,
        height,
        width,
        _cast(_POINTER, x.data_ptr()),
        code,
        count,
        added[0],
        _cast(_POINTER, out.data_ptr()),
        code,
    )
    if status != OK:
        if other is not None:  # the failure may be the bias's: it says so itself
            assert isinstance(bias, Stored), "whose core it is"
            bias.opened_run(other, 0, height)
        core._buffer._fail(status, core._offset, height * width * kind.itemsize)
    return out


def _sum_type(x: torch.dtype, matrix: torch.dtype) -> torch.dtype:
    """The type in which a product is summed."""
    return torch.float64 if torch.float64 in (x, matrix) else _SINGLE


def rows(x: Tensor, matrix: Matrix, bias: Tensor | None, result: torch.dtype) -> Tensor:
    """x · matrixᵀ + bias for a plain real floating x of shape (..., width): (..., height), of type
    `result`.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError; nothing of the result is
    handed out then.
    """
    core, offset, height, width, dtype = matrix
    shape = x.shape[:-1]
    count = math.prod(shape)
    kind = _sum_type(x.dtype, dtype)
    if x.dtype is not kind:
        x = x.to(kind)
    if not x.is_contiguous():
        x = x.contiguous()
    if bias is not None and (bias.dtype is not kind or not bias.is_contiguous()):
        bias = converted(bias, kind)  # it may have been encrypted
    if kind is _SINGLE:
        out = torch.empty((*shape, height), dtype=_SINGLE)
        status = _linear(
            core._opened(),
            offset,
            NATIVE[dtype],
            height,
            width,
            _NULL,
            _cast(_FLOATS, x.data_ptr()),
            count,
            width,
            _NULL if bias is None else _cast(_FLOATS, bias.data_ptr()),
            _cast(_FLOATS, out.data_ptr()),
            height,
        )
        if status != OK:
            core._buffer._fail(status, offset, height * width * dtype.itemsize)
        return out if result is _SINGLE else out.to(result)
    out = torch.empty((count, height), dtype=result)
    _by_tiles(x.view(count, width), matrix, bias, out)
    return out.view(*shape, height)


def _by_tiles(x: Tensor, matrix: Matrix, bias: Tensor | None, out: Tensor) -> None:
    """rows() for an x of float64 of shape (count, width)."""
    height = matrix.height
    if not len(x) or not height:
        matrix.core._opened()
        return
    if not matrix.width:
        out.zero_()
        if bias is not None:
            out.add_(bias)
        return
    step = _tile_height(matrix, x)
    part = None if out.dtype is x.dtype else torch.empty((len(x), step), dtype=x.dtype)
    block = _blas.Block()
    try:
        block.started()
        for at, tile in _tiles(matrix, x.dtype, step):
            n = len(tile)
            target = out[:, at : at + n] if part is None else part[:, :n]
            if bias is None:
                torch.mm(x, tile.t(), out=target)
            else:
                torch.addmm(bias[at : at + n], x, tile.t(), out=target)
            if part is not None:
                out[:, at : at + n].copy_(target)
        _blas.product_ended(x, (step, (height - 1) % step + 1), turned=True)
    except BaseException:
        out.zero_()
        raise
    finally:
        block.ended()


def columns(x: Tensor, matrix: Matrix, bias: Tensor | None, result: torch.dtype) -> Tensor:
    """x · matrix + bias for a plain real floating x of shape (..., height): (..., width), of type
    `result`. Raises as rows() does."""
    core, _, height, width, dtype = matrix
    shape = x.shape[:-1]
    count = math.prod(shape)
    kind = _sum_type(x.dtype, dtype)
    x = x.to(kind).reshape(count, height)
    out = torch.empty((count, width), dtype=kind)
    if bias is None:
        out.zero_()
    else:
        out.copy_(bias)
    if count and height and width:
        step = _tile_height(matrix, x)
        block = _blas.Block()
        try:
            block.started()
            for at, tile in _tiles(matrix, kind, step):
                out.addmm_(x[:, at : at + len(tile)], tile)
            _blas.product_ended(out, (step, (height - 1) % step + 1), turned=False)
        except BaseException:
            out.zero_()
            raise
        finally:
            block.ended()
    else:
        core._opened()
    return out.to(result).view(*shape, width)


# ---- tiles ---------------------------------------------------------------------------------------


def _tile_height(matrix: Matrix, x: Tensor) -> int:
    """Rows of the matrix that are opened at a time, as many in each tile but for the last."""
    nbytes = LARGE_TILE_BYTES if len(x) >= MANY_ROWS else TILE_BYTES
    most = max(1, nbytes // (matrix.width * x.element_size()))
    return -(-matrix.height // -(-matrix.height // most))


def _tiles(matrix: Matrix, kind: torch.dtype, step: int) -> Any:
    """The rows of the matrix in order, `step` at a time, as (number of the first, tensor of `kind`
    that the next overwrites); wiped in the end."""
    core, offset, height, width, dtype = matrix
    row_bytes = width * dtype.itemsize
    block, memory = _plain.block(step * row_bytes)
    stored = torch.frombuffer(memory, dtype=dtype).view(step, width)
    tiles = stored
    if dtype is not kind:
        _, room = _plain.block(step * width * kind.itemsize)
        tiles = torch.frombuffer(room, dtype=kind).view(step, width)
    store = core._opened()
    for at in range(0, height, step):
        n = min(step, height - at)
        start, nbytes = offset + at * row_bytes, n * row_bytes
        status = _read(store, start, block, nbytes)
        if status != OK:
            core._buffer._fail(status, start, nbytes)
        if dtype is not kind:
            tiles[:n].copy_(stored[:n])
        yield at, tiles[:n]
