# SPDX-License-Identifier: Apache-2.0
"""Turns an index expression into the places of the bytes it names, without touching a byte.

numpy itself does the indexing, so results, shapes and errors are numpy's by construction. Basic
expressions are applied to a phantom: an array of the tensor's shape over memory that is not there.
Its elements have no bytes, but its views have an address, a shape and strides. Integer and boolean
arrays are applied to arrays of byte offsets.
"""

from __future__ import annotations

import math
import operator
from enum import Enum
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors

__all__ = [
    "How",
    "Selection",
    "address",
    "names_several",
    "phantom",
    "refuse",
    "reshaped",
    "select",
]

Offsets = npt.NDArray[np.int64]

#: A tensor whose rows have at least this many bytes keeps a table of its rows' offsets, so that
#: gathering rows is one step. At 8 bytes each, the table is at most 0.8 % of the tensor.
TABLE_ROW_BYTES = 1024


class How(Enum):
    """The kinds of index that numpy treats differently in assignment."""

    ELEMENT = "one number for each axis: a scalar"
    VIEW = "basic indexing: numpy would give a view"
    MASK = "one boolean array for all axes"
    ARRAYS = "any other index with arrays"


class Selection(NamedTuple):
    """What an index names: a strided block of items of `dtype` at each of the byte offsets `outer`,
    which are relative to the tensor. `shape` and `strides` (in bytes) are a block's, as numpy has
    them."""

    outer: Offsets
    outer_shape: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    #: The kind of index, which decides some of numpy's rules.
    how: How

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.outer_shape + self.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.full_shape) * self.dtype.itemsize


#: An element of no bytes, so that reading a phantom, if only to print it, reads no memory.
_NOTHING = np.zeros((), np.dtype((np.void, 0)))


def phantom(shape: tuple[int, ...], itemsize: int) -> npt.NDArray[Any]:
    """Returns an array over no memory, with the strides of a C-contiguous array of this shape. Only
    its address and strides have a meaning. Raises ValueError for a size that numpy cannot have."""
    step = itemsize
    strides: list[int] = []
    for n in reversed(shape):
        strides.insert(0, step)
        step *= max(n, 1)
    if step > np.iinfo(np.intp).max:
        raise ValueError("it is too large for any memory")
    return np.lib.stride_tricks.as_strided(_NOTHING, shape, strides, writeable=False)


def reshaped(shape: tuple[int, ...], wanted: Any) -> tuple[int, ...]:
    """Returns what numpy's reshape() makes of a shape. Raises ValueError, TypeError."""
    found: tuple[int, ...] = np.broadcast_to(_NOTHING, shape).reshape(wanted).shape
    return found


def address(view: npt.NDArray[Any]) -> int:
    """Returns the address at which a phantom's view would start."""
    return int(view.ctypes.data)  # in half the time that __array_interface__ takes


def refuse(error: Exception, what: str, shape: tuple[int, ...]) -> errors.PyccmemError:
    """Returns our exception for an exception that numpy raised about `what`. It is of numpy's type
    too."""
    kind: type[errors.PyccmemError] = errors.ArgumentError
    if isinstance(error, IndexError):
        kind = errors.IndexingError
    elif isinstance(error, TypeError):
        kind = errors.ArgumentTypeError
    text = str(error).strip().rstrip(".")
    return kind(f"{what} does not fit a tensor of shape {shape}: {text}.")


def select(index: Any, ghost: npt.NDArray[Any], base: int, dtype: np.dtype[Any]) -> Selection:
    """Returns what `index` names in a tensor of `dtype` with the phantom `ghost`, which is at
    address `base`.

    Raises IndexingError, ArgumentError, ArgumentTypeError as numpy raises IndexError, ValueError,
    TypeError.
    """
    try:
        names = index if isinstance(index, str) else names_several(index)
        if names is not None:
            return _fields(names, ghost, dtype)
        items = index if isinstance(index, tuple) else (index,)
        plain = _plain_items(items)
        if all(item is not None for item in plain):
            basic = tuple(None if item is _NEWAXIS else item for item in plain)
            scalar = not any(item is Ellipsis for item in basic)
            view = ghost[basic + _REST] if scalar else ghost[basic]
            return _view(view, base, dtype, How.ELEMENT if scalar and view.ndim == 0 else How.VIEW)
        if plain[0] is None and all(item is not None for item in plain[1:]):
            rest = tuple(None if item is _NEWAXIS else item for item in plain[1:])
            return _rows(items[0], rest, ghost, base, dtype)
        return _anything(items, ghost, dtype)
    except (IndexError, TypeError, ValueError) as error:
        raise refuse(error, "The index", ghost.shape) from None


def names_several(index: Any) -> list[str] | None:
    """Returns the names if the index is a list or an array of field names; None for any other
    index."""
    if isinstance(index, np.ndarray):
        return index.tolist() if index.dtype.kind == "U" and index.ndim == 1 else None
    if isinstance(index, list) and index and all(isinstance(name, str) for name in index):
        return index
    return None


def _fields(index: Any, ghost: npt.NDArray[Any], dtype: np.dtype[Any]) -> Selection:
    """Returns the selection of one field of a structured dtype, or of whole items when the index
    names several fields."""
    shape, strides = ghost.shape, ghost.strides
    chosen, at = np.zeros((), dtype)[index].dtype, 0  # raises numpy's errors
    if isinstance(index, str):
        assert dtype.fields is not None
        whole, at = dtype.fields[index][:2]
        if whole.subdtype is not None:
            chosen, inner = whole.subdtype
            shape, strides = shape + inner, strides + phantom(inner, chosen.itemsize).strides
    return Selection(_START + at, (), shape, strides, chosen, How.VIEW)


_NEWAXIS = object()
_REST: tuple[Any, ...] = (Ellipsis,)


def _plain_items(items: tuple[Any, ...]) -> list[Any]:
    """Returns each item of an index as an int, slice, Ellipsis or _NEWAXIS. An item is None if it
    is an array, or something that numpy turns into one, unless it holds a single integer."""
    found: list[Any] = []
    for item in items:
        if item is None:
            found.append(_NEWAXIS)
        elif isinstance(item, (slice, EllipsisType)):
            found.append(item)
        elif isinstance(item, (bool, np.bool_, list, tuple)):
            found.append(None)
        else:
            try:
                found.append(operator.index(item))
            except TypeError:
                found.append(_single(item))
    return found


def _single(item: Any) -> int | None:
    """Returns the integer for an item that numpy turns into an integer array of no dimensions; None
    for any other item."""
    if isinstance(item, np.ndarray) and item.ndim:
        return None
    array = np.asarray(item)
    return int(array) if not array.ndim and array.dtype.kind in "iu" else None


_START = np.zeros(1, np.int64)


def _view(view: npt.NDArray[Any], base: int, dtype: np.dtype[Any], how: How) -> Selection:
    """Returns the selection that a phantom's view stands for."""
    start = address(view) - base if view.size else 0
    return Selection(_START + start, (), view.shape, view.strides, dtype, how)


def _as_index(item: Any) -> npt.NDArray[Any]:
    """Returns an item of an index as numpy sees it: an integer or boolean array. For other kinds
    numpy raises its own error later."""
    array = np.asarray(item)
    if not array.size and not isinstance(item, np.ndarray):
        array = array.astype(np.intp)  # an empty list is of integers here
    return array


def _row_offsets(index: npt.NDArray[Any], n: int, stride: int) -> Offsets:
    """Returns the byte offsets of rows, by their numbers; negative numbers count from the end."""
    np.broadcast_to(np.False_, n)[index]  # raises numpy's errors
    if index.dtype.kind == "b":
        return np.flatnonzero(index) * stride
    rows = index.astype(np.int64)
    rows += n * (rows < 0)
    rows *= stride
    return rows


def _rows(
    item: Any,
    rest: tuple[Any, ...],
    ghost: npt.NDArray[Any],
    base: int,
    dtype: np.dtype[Any],
) -> Selection:
    """Selects by an array along the first axis, with a basic index for the other axes. A boolean
    array of several dimensions selects along as many axes."""
    index = _as_index(item)
    if index.dtype.kind not in "iub" or ghost.ndim == 0 or index.ndim == 0:
        return _anything((item, *rest), ghost, dtype)
    if index.dtype.kind == "b" and index.ndim > 1:
        axes = index.ndim
        np.broadcast_to(np.False_, ghost.shape)[index]
        outer = np.flatnonzero(index) * ghost.strides[axes - 1]
        shape: tuple[int, ...] = outer.shape
    else:
        axes = 1
        outer = _row_offsets(index, ghost.shape[0], ghost.strides[0])
        shape = outer.shape
        outer = outer.reshape(-1)
    if not rest:
        how = How.MASK if index.dtype.kind == "b" and axes == ghost.ndim else How.ARRAYS
        return Selection(outer, shape, ghost.shape[axes:], ghost.strides[axes:], dtype, how)
    if sum(isinstance(part, EllipsisType) for part in rest) < 2 and 0 not in ghost.shape[:axes]:
        first: tuple[Any, ...] = (0,) * axes
        row = ghost[first + _REST]
        view = row[rest] if Ellipsis in rest else row[rest + _REST]
        if view.size:
            outer = outer + (address(view) - base)
        return Selection(outer, shape, view.shape, view.strides, dtype, How.ARRAYS)
    return _anything((item, *rest), ghost, dtype)


def _anything(items: tuple[Any, ...], ghost: npt.NDArray[Any], dtype: np.dtype[Any]) -> Selection:
    """Selects by any index with arrays, which is applied to the coordinates along each axis that it
    can reach, which takes 8 bytes an axis for each element or row selected."""
    depth = 0
    mask = len(items) == 1 and not ghost.ndim and not _as_index(items[0]).ndim
    for item, plain in zip(items, _plain_items(items), strict=True):
        if isinstance(plain, EllipsisType):
            depth = ghost.ndim
            break
        if plain is None:
            array = _as_index(item)
            depth += array.ndim if array.dtype.kind == "b" else 1
        elif plain is not _NEWAXIS:
            depth += 1
    if depth > ghost.ndim:
        depth = ghost.ndim
    leading = ghost.shape[:depth]
    total: Any = np.broadcast_to(np.zeros((), np.int64), leading)[items]
    for axis, n in enumerate(leading):
        along = np.arange(n, dtype=np.int64) * ghost.strides[axis]
        spread = along.reshape((n,) + (1,) * (depth - axis - 1))
        total = total + np.broadcast_to(spread, leading)[items]
    outer = np.asarray(total, np.int64)
    return Selection(
        np.ascontiguousarray(outer).reshape(-1),
        outer.shape,
        ghost.shape[depth:],
        ghost.strides[depth:],
        dtype,
        How.MASK if mask else How.ARRAYS,
    )
