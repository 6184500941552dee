# SPDX-License-Identifier: Apache-2.0
"""Blocks: the Stored of a quantised tensor, whose elements lie in encrypted blocks of a few bits.

Its dtype is that of the values that it gives and takes part in products with. Blocks are not
written again: the operations that would change a value are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from .. import errors
from ..core.block_matrix import BlockMatrix, block_matrix_of, open_rows
from ..core.operand import place_of
from ..core.store import Store, check_open
from ..keys import Key
from ..quantized import QuantizedTensor
from ..tensor import EncryptedTensor as Core
from ._results import converted, wiped_like
from ._rows import checked_numbers
from ._stored import Stored
from .path import Form

__all__ = ["Blocks", "OrderedMatrix", "checked_order"]

#: Bytes of float32 that are opened at a time where not all that is opened is kept.
_BLOCK = 1 << 20


class OrderedMatrix(NamedTuple):
    """A matrix of blocks whose n-th column is column order[n] of the weight, as GPTQ's act-order
    leaves them."""

    matrix: BlockMatrix
    order: Core

    @property
    def rows(self) -> int:
        return self.matrix.rows

    @property
    def cols(self) -> int:
        return self.matrix.cols

    def numbers(self) -> Tensor:
        """Returns the order as int64, in memory that is wiped. Raises IntegrityError, ClosedError,
        ForkError."""
        return _opened_order(self.order)


def _opened_order(order: Core) -> Tensor:
    return converted(torch.from_numpy(order[...]), torch.int64)


def checked_order(order: Core, blocks: QuantizedTensor) -> Core:
    """Returns the order of the columns of blocks, of a file. Raises ArgumentError unless it names
    each column once; IntegrityError, ClosedError, ForkError."""
    columns = blocks.shape[-1]
    if order.dtype != np.int32 or order.shape != (columns,):
        raise errors.ArgumentError(f"The order of {columns} columns has shape {order.shape}.")
    numbers = order[...]
    if not np.array_equal(np.sort(numbers), np.arange(columns)):
        raise errors.ArgumentError(f"The order does not name each of {columns} columns once.")
    return order


def _refused() -> NoReturn:
    raise errors.ReadOnlyError(
        "A quantised tensor cannot be written: its blocks were made once of all their values. An "
        "adapter works without being merged. To merge it, or to change weights, turn the model "
        "into plain tensors with pyccmem.torch.decrypt_module(model), and quantise it again "
        "afterwards with encrypt_module(model, quantize=...)."
    )


class Blocks(Stored):
    """A QuantizedTensor behind an EncryptedTensor of torch and all its aliases and views."""

    __slots__ = ("order", "parts")

    def __init__(
        self,
        core: QuantizedTensor,
        dtype: torch.dtype,
        key: Key | None,
        *,
        wipe_results: bool = False,
        order: Core | None = None,
    ) -> None:
        """Raises ArgumentTypeError for a dtype that has no products."""
        if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise errors.ArgumentTypeError(
                f"The values of a quantised tensor cannot be {dtype}; use torch.float32, bfloat16, "
                f"float16 or float64."
            )
        given: Any = core
        super().__init__(given, dtype, key, wipe_results=wipe_results)
        self.order = order
        #: What torch.save() writes for it, once it has; see _serialize_blocks.
        self.parts: Any = None

    def _set(self, core: Any) -> None:
        self.core, self.matrix = core, None

    # ---- where it lies ----

    @property
    def blocks(self) -> QuantizedTensor:
        """The tensor with the blocks."""
        core: Any = self.core
        return core  # type: ignore[no-any-return]

    @property
    def format(self) -> str:
        return self.blocks.format.name

    def place(self) -> tuple[Store, int]:
        return place_of(self.blocks.raw)

    def nbytes(self) -> int:
        return self.blocks.raw.nbytes

    def form(self) -> Form:
        return Form(0, self.blocks.shape, self.dtype, self.format)

    def pages(self) -> Any:
        return self.blocks.raw.buffer.ciphertext

    def maker(self) -> Callable[[Any, torch.dtype], Stored]:
        order = self.order
        return lambda core, dtype: Blocks(core, dtype, None, order=order)

    def _run(self, first: int, shape: tuple[int, ...]) -> tuple[BlockMatrix, int] | None:
        """Returns the matrix of all rows, and the number of the row that begins at element `first`;
        None unless a tensor of `shape` there has whole rows."""
        matrix = block_matrix_of(self.blocks)
        if not shape or shape[-1] != matrix.cols or (matrix.cols and first % matrix.cols):
            return None
        return matrix, first // matrix.cols if matrix.cols else 0

    def matrix_at(self, first: int, shape: tuple[int, ...]) -> Any:
        found = self._run(first, shape)
        if found is None or len(shape) != 2:
            return None
        matrix, at = found
        scale = matrix.scale
        if scale is not None:
            scale = scale[0], scale[1] + 4 * at
        part = matrix._replace(
            offset=matrix.offset + at * matrix.row_bytes, rows=shape[0], scale=scale
        )
        return part if self.order is None else OrderedMatrix(part, self.order)

    # ---- reading ----

    def _straight(self, rows: Tensor) -> Tensor:
        """Returns opened rows with their columns in the weight's order."""
        if self.order is None:
            return rows
        out = wiped_like(tuple(rows.shape), rows.dtype)
        out.index_copy_(-1, _opened_order(self.order), rows)
        return out

    def _opened_rows(self, numbers: Any, count: int) -> Tensor:
        """Returns rows as float32: those of a slice, or by their numbers."""
        matrix = block_matrix_of(self.blocks)
        out = wiped_like((count, matrix.cols), torch.float32)
        open_rows(matrix, numbers, out.numpy())
        return self._straight(out)

    def opened_run(self, core: Any, first: int, count: int) -> Tensor:
        matrix = block_matrix_of(self.blocks)
        if not count:
            check_open(matrix.store, "tensor")
            return torch.empty(0, dtype=self.dtype)
        start, stop = first // matrix.cols, -(-(first + count) // matrix.cols)
        if count <= matrix.cols or 4 * count <= _BLOCK:
            opened = self._opened_rows(slice(start, stop), stop - start).view(-1)
            part = opened[first - start * matrix.cols :][:count]
            if part.numel() == opened.numel() and self.dtype is torch.float32:
                return opened
            return converted(part, self.dtype)
        out = wiped_like((count,), self.dtype)
        step = max(_BLOCK // (4 * matrix.cols), 1)
        for at in range(start, stop, step):
            end = min(at + step, stop)
            opened = self._opened_rows(slice(at, end), end - at).view(-1)
            begin = at * matrix.cols
            left, right = max(first, begin), min(first + count, end * matrix.cols)
            out[left - first : right - first].copy_(opened[left - begin : right - begin])
        return out

    def rows_at(
        self, first: int, shape: tuple[int, ...], numbers: Tensor, *, wrap: bool
    ) -> Tensor | None:
        found = self._run(first, shape) if len(shape) > 1 else None
        if found is None:
            return None
        matrix, at = found
        checked = checked_numbers(shape[0], numbers, wrap=wrap)
        out = wiped_like((*numbers.shape, *shape[1:]), self.dtype)
        if checked is None or not out.numel():
            check_open(matrix.store, "tensor")
            return out
        each = math.prod(shape[1:-1])
        flat = out.view(-1, matrix.cols)
        wanted = checked.view(-1).numpy()
        step = max(_BLOCK // (4 * matrix.cols * each), 1)
        for begin in range(0, len(wanted), step):
            part = wanted[begin : begin + step]
            named = (part[:, None] * each + np.arange(at, at + each)).reshape(-1)
            flat[begin * each : begin * each + len(named)].copy_(
                self._opened_rows(named, len(named))
            )
        return out

    # ---- copies ----

    def copied(self, dtype: torch.dtype) -> Stored:
        """Returns the same blocks, whose values are of another type: nothing is opened."""
        return Blocks(
            self.blocks, dtype, self.key, wipe_results=self.wipe_results, order=self.order
        )

    def twin(self) -> Stored:
        return self.copied(self.dtype)

    # ---- what would write ----

    def take(self, other: Stored | None) -> None:
        """Takes the blocks of another tensor for its own. Raises ReadOnlyError for anything else
        than blocks of the same format, shape and order."""
        if (
            not isinstance(other, Blocks)
            or other.blocks.format != self.blocks.format
            or other.blocks.shape != self.blocks.shape
            or other.order is not self.order
        ):
            _refused()
        with self.lock:
            self._replace(other.core)

    def writable(self) -> Any:
        _refused()

    def replace(self, values: Tensor) -> None:
        _refused()
