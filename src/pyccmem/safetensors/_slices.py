# SPDX-License-Identifier: Apache-2.0
"""Slices of tensors of an open file, as safetensors has them: numbers, slices of positive step and
one Ellipsis. What reaches outside the tensor is refused, where NumPy would cut it off."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from .. import errors
from ..files.safetensors_header import shown
from ._frameworks import Framework

__all__ = ["TensorSlice"]

_Items = tuple[int | slice, ...]


class TensorSlice:
    """A tensor of an open file, of which an index takes a part; made by get_slice().

    `part[index]` of framework "np" is an array, decrypted into memory that is wiped when its last
    user goes; of "pt" it is an EncryptedTensor of torch, still ciphertext. Of a plain file, only
    the rows are read (the parts along the first axis) that the index needs.
    """

    __slots__ = ("_dtype", "_framework", "_name", "_rows", "_shape", "_tensor")

    def __init__(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        framework: Framework,
        tensor: Any,
        rows: Callable[[int, int], Any] | None,
    ) -> None:
        """`tensor` is the whole tensor; if it is None, `rows(begin, end)` returns a part along the
        first axis."""
        self._name, self._dtype, self._shape = name, dtype, shape
        self._framework, self._tensor, self._rows = framework, tensor, rows

    def get_shape(self) -> list[int]:
        """Returns the shape of the whole tensor."""
        return list(self._shape)

    def get_dtype(self) -> str:
        """Returns the tensor's dtype in the spelling of safetensors (F32, BF16, ...)."""
        return self._dtype

    def __getitem__(self, index: Any) -> Any:
        """Returns the part that `index` names. Raises FileIndexError, and what get_tensor() and
        reading the tensor raise."""
        items = _items(index, self._shape)
        whole = all(
            isinstance(item, slice) and item == slice(0, n, 1)
            for item, n in zip(items, self._shape, strict=True)
        )
        if self._rows is None or not items:
            tensor = self._tensor if self._rows is None else self._rows(0, 1)
            return self._framework.part(tensor, items, whole)
        first = items[0]
        if isinstance(first, slice):
            steps = range(first.start, first.stop, first.step)
            begin, end = (steps[0], steps[-1] + 1) if steps else (0, 0)
            items = (slice(0, end - begin, first.step), *items[1:])
        else:
            begin, end = first, first + 1
            items = (0, *items[1:])
        return self._framework.part(self._rows(begin, end), items, whole)

    def __repr__(self) -> str:
        return f"<pyccmem.TensorSlice {self._name!a}, {self._dtype}, shape {self._shape}>"


def _items(index: Any, shape: tuple[int, ...]) -> _Items:
    """Returns an index as a number or a slice for each axis, all within it."""
    if isinstance(index, list) and not index:
        index = slice(0, 0)
    given = index if isinstance(index, tuple) else (index,)
    ellipses = sum(item is Ellipsis for item in given)
    missing = len(shape) - (len(given) - ellipses)
    if ellipses > 1 or missing < 0:
        raise errors.FileIndexError(
            f"The index {shown(index)} has {len(given)} entries, and the tensor has shape "
            f"{shape}; give at most one for each axis, and one Ellipsis."
        )
    if not ellipses:
        given = (*given, Ellipsis)
    items: list[int | slice] = []
    for item in given:
        if item is Ellipsis:
            items.extend(slice(0, n, 1) for n in shape[len(items) : len(items) + missing])
        else:
            items.append(_item(item, len(items), shape))
    return tuple(items)


def _item(item: Any, axis: int, shape: tuple[int, ...]) -> int | slice:
    n = shape[axis]
    if isinstance(item, slice):
        begin = _number(item.start, 0, axis, n)
        end = _number(item.stop, n, axis, n)
        step = 1 if item.step is None else _whole(item.step, axis)
        if step < 1:
            raise errors.FileIndexError(
                f"The slice of axis {axis} has step {step}; slices of files go forwards only, so "
                f"turn around what you get."
            )
        return slice(begin, end, step)
    at = _whole(item, axis)
    if not -n <= at < n:
        raise errors.FileIndexError(
            f"Index {at} is outside axis {axis}, which has {n}; the tensor has shape {shape}."
        )
    return at % n


def _number(value: Any, default: int, axis: int, n: int) -> int:
    """Returns the begin or end of a slice, counted from the first element."""
    if value is None:
        return default
    at = _whole(value, axis)
    if not -n <= at <= n:
        raise errors.FileIndexError(
            f"The slice of axis {axis} reaches to {at}, and the axis has {n}; slices of files are "
            f"not cut off."
        )
    return at if at >= 0 else at + n


def _whole(value: Any, axis: int) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise errors.FileIndexError(
        f"The index of axis {axis} is {shown(value)}; slices of files take numbers, slices and "
        f"one Ellipsis, so take the tensor with get_tensor() for others."
    )
