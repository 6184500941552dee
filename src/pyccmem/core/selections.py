# SPDX-License-Identifier: Apache-2.0
"""NumPy's functions that look for elements or take some, of tiles or of the pages that hold
them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .tiles import Index, axes_of, folded, grouped, is_small, kept, pairwise, probe_of

__all__ = ["count_nonzero", "diagonal", "put", "search_function", "take", "trace"]

Array = npt.NDArray[Any]


def search_function(name: str) -> Callable[..., Any]:
    """Returns np.argmin() or np.argmax() for tensors."""
    search: Any = getattr(np, name)

    def function(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        if is_small(a):
            return NotImplemented
        search(probe_of(a), axis=axis)
        axes = axes_of(axis, a.ndim)
        # Numbers of elements along the axis, or in C order.
        strides = [1 if axis is not None else math.prod(a.shape[at + 1 :]) for at in axes]

        def part(index: Index) -> Any:
            first = sum(index[at].start * stride for at, stride in zip(axes, strides, strict=True))
            values = a[index]
            if axis is None:
                flat = values.reshape(-1)
                place = int(search(flat))
                ones = (1,) * a.ndim
                return np.reshape(place + first, ones), flat[place : place + 1].reshape(ones).copy()
            places = np.expand_dims(search(values, axis=axis), axis)
            return places + first, np.take_along_axis(values, places, axis)

        def join(one: Any, other: Any) -> Any:
            along = 0 if axis is None else axis
            # NumPy's own choice between the two: the first of equals, and what is no number.
            both = np.concatenate([one[1], other[1]], axis=along)
            later = np.expand_dims(search(both, axis=along), along)
            places = np.where(later, other[0], one[0])
            return places, np.take_along_axis(both, later, along)

        shape = tuple(1 if at in axes else n for at, n in enumerate(a.shape))
        found = np.empty(shape, np.intp)
        for place, inner in grouped(a, axes):
            found[place] = pairwise(map(part, inner), join)[0]
        return np.add.reduce(found, axis=axis, out=out, keepdims=kept(keepdims))

    return function


def count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    """Returns np.count_nonzero()."""
    if is_small(a):
        return NotImplemented
    number = np.count_nonzero(probe_of(a), axis=axis, keepdims=keepdims)
    axes = axes_of(axis, a.ndim)

    def part(index: Index) -> Array:
        return np.asarray(np.count_nonzero(a[index], axis=axes, keepdims=True))

    counted: Any = folded(a, axes, part, np.add)
    found = counted.sum(axis=axis, keepdims=bool(keepdims))
    return int(found) if type(number) is int else found


def take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
    """Returns np.take(), which opens the pages of what is taken. Leaves `out` to NumPy."""
    if is_small(a) or out is not None:
        return NotImplemented
    places = np.asarray(indices).astype(np.intp)
    np.take(probe_of(a), np.zeros((), np.intp), axis=axis, mode=mode)
    source, at = (a.reshape(-1), 0) if axis is None else (a, int(axis) % a.ndim)
    n = source.shape[at]
    if mode == "wrap":
        places = places % n
    elif mode == "clip":
        places = np.clip(places, 0, n - 1)
    elif mode != "raise":
        return NotImplemented
    return source[(slice(None),) * at + (places,)]


def diagonal(a: Any, offset: Any = 0, axis1: Any = 0, axis2: Any = 1) -> Any:
    """Returns np.diagonal(), which opens the pages of the diagonals. It is read-only, as
    NumPy's."""
    if is_small(a):
        return NotImplemented
    np.diagonal(probe_of(a), offset, axis1, axis2)
    offset, one, other = int(offset), int(axis1) % a.ndim, int(axis2) % a.ndim
    down, right = max(-offset, 0), max(offset, 0)
    along = np.arange(max(min(a.shape[one] - down, a.shape[other] - right), 0))
    index: list[Any] = [slice(None)] * a.ndim
    index[one], index[other] = along + down, along + right
    first = min(one, other) if abs(one - other) == 1 else 0
    found = np.moveaxis(a[tuple(index)], first, -1)
    found.flags.writeable = False
    return found


def trace(
    a: Any, offset: Any = 0, axis1: Any = 0, axis2: Any = 1, dtype: Any = None, out: Any = None
) -> Any:
    """Returns np.trace(), the sum of np.diagonal()."""
    if is_small(a):
        return NotImplemented
    found = diagonal(a, offset, axis1, axis2)
    return np.add.reduce(found, axis=-1, dtype=dtype, out=out)


def put(a: Any, ind: Any, v: Any, mode: Any = "raise") -> None:
    """Does np.put()."""
    a.put(ind, v, mode)
