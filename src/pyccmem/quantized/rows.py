# SPDX-License-Identifier: Apache-2.0
"""What an index expression names of a tensor whose rows are opened as a whole: rows, or elements of
some."""

from __future__ import annotations

import math
import operator
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.indexing import refuse

__all__ = ["Elements", "Rows", "chosen"]

Numbers = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Rows, or the same columns of each: the shape that they get, without the last dimension; their
    numbers, or the slice of step 1 that they are; the slice of columns, None: all."""

    shape: tuple[int, ...]
    numbers: slice | Numbers
    columns: slice | None = None


class Elements(NamedTuple):
    """Elements: of each the number of its row, and that of its column, in arrays of the result's
    shape; whether the result is a scalar."""

    rows: Numbers
    columns: Numbers
    scalar: bool


def chosen(index: Any, shape: tuple[int, ...]) -> Rows | Elements:
    """Returns what `index` names of a tensor of this shape, which has a last dimension. NumPy does
    the indexing. Raises IndexingError, ArgumentError, ArgumentTypeError as NumPy raises IndexError,
    ValueError, TypeError."""
    lead = shape[:-1]
    if len(lead) == 1:
        found = _simple(index, lead[0])
        if found is not None:
            return found
    try:
        given = index if isinstance(index, tuple) else (index,)
        items = _without_ellipsis(given, len(shape))
        numbers = np.arange(math.prod(lead), dtype=np.int64).reshape(lead)
        depth, last = sum(map(_depth, items)), items[-1] if items else None
        # NumPy gets the index with its Ellipsis: arrays on both sides of one stand apart, even if
        # it takes no dimension.
        if depth <= len(lead):
            return _rows(numbers[given])
        if depth == len(shape) and isinstance(last, slice):
            return _rows(numbers[given if given[-1] is Ellipsis else given[:-1]], last)
        columns = np.arange(shape[-1], dtype=np.int64)
        named = np.broadcast_to(numbers[..., None], shape)[given]
        columns = np.broadcast_to(columns, shape)[given]
        return Elements(np.asarray(named), np.asarray(columns), not isinstance(named, np.ndarray))
    except (IndexError, TypeError, ValueError) as error:
        raise refuse(error, "The index", shape) from None


def _simple(index: Any, count: int) -> Rows | None:
    """Returns the rows of a number, a slice of step 1 or an Ellipsis; None for any other index."""
    if index is Ellipsis:
        return Rows((count,), slice(0, count))
    if isinstance(index, slice):
        try:
            start, stop, step = index.indices(count)
        except (TypeError, ValueError):
            return None
        if step != 1:
            return None
        return Rows((max(stop - start, 0),), slice(start, max(start, stop)))
    if isinstance(index, (bool, np.bool_, tuple, np.ndarray)):
        return None
    try:
        at = operator.index(index)
    except TypeError:
        return None
    if not -count <= at < count:
        return None
    at += count if at < 0 else 0
    return Rows((), slice(at, at + 1))


def _rows(named: Any, columns: slice | None = None) -> Rows:
    if columns is not None and columns.indices(2) == (0, 2, 1) and columns.stop is None:
        columns = None
    numbers = np.asarray(named)
    flat = numbers.reshape(-1)
    if flat.size and flat[-1] - flat[0] == flat.size - 1 and (np.diff(flat) == 1).all():
        return Rows(numbers.shape, slice(int(flat[0]), int(flat[-1]) + 1), columns)
    return Rows(numbers.shape, flat, columns)


def _depth(item: Any) -> int:
    """Returns how many dimensions an item of an index takes."""
    if item is None or isinstance(item, EllipsisType):
        return 0
    if isinstance(item, (bool, np.bool_)):
        return 0
    if isinstance(item, (list, tuple, np.ndarray)):
        array = np.asarray(item)
        return array.ndim if array.dtype.kind == "b" else 1
    return 1


def _without_ellipsis(items: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """Returns the index with slices in the place of its Ellipsis, if there is one."""
    places = [at for at, item in enumerate(items) if isinstance(item, EllipsisType)]
    if len(places) != 1:
        return items
    at, free = places[0], ndim - sum(map(_depth, items))
    return items[:at] + (slice(None),) * max(free, 0) + items[at + 1 :]
