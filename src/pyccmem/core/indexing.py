# SPDX-License-Identifier: Apache-2.0
"""From an index expression to the bytes it names, without touching any.

numpy itself does the indexing. Basic expressions are applied to a phantom: an array of the tensor's
shape over memory that is not there, whose views give away their address, shape and strides, and
whose elements have no bytes. Integer and boolean arrays are applied to arrays of byte offsets. So
results, shapes and errors are numpy's by construction.
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

#: A tensor whose rows have at least this many bytes keeps a table of its rows' offsets (8 bytes
#: each, so at most 0.8 % of its size), which makes gathering rows one step.
TABLE_ROW_BYTES = 1024


class How(Enum):
    """The kinds of index that numpy treats differently in assignment."""

    ELEMENT = "one number for each axis: a scalar"
    VIEW = "basic indexing: numpy would give a view"
    MASK = "one boolean array for all axes"
    ARRAYS = "any other index with arrays"


class Selection(NamedTuple):
    """What an index names: at each of the byte offsets `outer` (relative to the tensor) a strided
    block of `shape` and `strides` (in bytes, as numpy's) of `dtype`'s items."""

    outer: Offsets
    outer_shape: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    #: By what it was selected, which decides some of numpy's rules.
    how: How

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.outer_shape + self.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.full_shape) * self.dtype.itemsize


#: An element of no bytes: whoever reads a phantom, if only to print it, reads no memory.
_NOTHING = np.zeros((), np.dtype((np.void, 0)))


def phantom(shape: tuple[int, ...], itemsize: int) -> npt.NDArray[Any]:
    """Returns an array over nothing with the strides of a C-contiguous one of this shape; only its
    address and strides have meaning. Raises ValueError when numpy cannot have an array of this
    size."""
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
    """Returns where a phantom's view would start in memory."""
    return int(view.__array_interface__["data"][0])


def refuse(error: Exception, what: str, shape: tuple[int, ...]) -> errors.PyccmemError:
    """Returns the exception of ours for one that numpy raised about `what`; each of ours is also of
    numpy's type."""
    kind: type[errors.PyccmemError] = errors.ArgumentError
    if isinstance(error, IndexError):
        kind = errors.IndexingError
    elif isinstance(error, TypeError):
        kind = errors.ArgumentTypeError
    text = str(error).strip().rstrip(".")
    return kind(f"{what} does not fit a tensor of shape {shape}: {text}.")


def select(index: Any, ghost: npt.NDArray[Any], base: int, dtype: np.dtype[Any]) -> Selection:
    """Returns what `index` names in the tensor of `dtype` whose phantom, at address `base`, is
    `ghost`.

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
    """Returns the names of fields that an index is a list or an array of; None for any other."""
    if isinstance(index, np.ndarray):
        return index.tolist() if index.dtype.kind == "U" and index.ndim == 1 else None
    if isinstance(index, list) and index and all(isinstance(name, str) for name in index):
        return index
    return None


def _fields(index: Any, ghost: npt.NDArray[Any], dtype: np.dtype[Any]) -> Selection:
    """Returns one field of a structured dtype, or whole items of which several fields are named."""
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
    """Returns each item of an index as an int, slice, Ellipsis or _NEWAXIS; None for an array, or
    for what numpy would make one of, of anything but a single integer."""
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
    """Returns the integer that numpy makes an array of no dimensions of; None for any other
    array."""
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
    """Returns an item of an index as numpy sees it: an integer or boolean array. Other kinds are
    left to numpy's own error."""
    array = np.asarray(item)
    if not array.size and not isinstance(item, np.ndarray):
        array = array.astype(np.intp)  # an empty list is of integers here
    return array


def _row_offsets(index: npt.NDArray[Any], n: int, stride: int) -> Offsets:
    """Byte offsets of rows by their numbers, negative ones counted from the end."""
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
    """Returns an array that selects along the first axis (a boolean one of more dimensions: along
    the first axes), with a basic index for the others."""
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
    """Any index with arrays: it is applied to the coordinates along each axis that it can reach,
    which takes 8 bytes an axis for each element or row selected."""
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
