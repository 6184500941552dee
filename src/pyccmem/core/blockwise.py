# SPDX-License-Identifier: Apache-2.0
"""NumPy's reductions of a tensor that is larger than a block, with one block of it in the clear.

Each function takes what NumPy's takes, with a tensor as its first argument, and returns
NotImplemented for what it leaves to NumPy: tensors of at most a block, and the rest of what its
docstring names. Wrong arguments are shown to NumPy first, on an array with one element an axis, so
that its own errors come before anything is opened.

The blocks of one result are joined in pairs, like NumPy's pairwise sums (Higham, "The accuracy of
floating point summation", 1993): the error grows with the logarithm of their number.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import wiped

__all__ = ["BOUNDED", "IN_PLACE", "Index", "lines", "reduce", "tiles"]

Array = npt.NDArray[Any]
Index = tuple[slice, ...]

#: The most plaintext of a tensor at a time.
BLOCK_BYTES = 1 << 20

#: Results of at least this many bytes are joined one after another, as NumPy adds rows: pairs of
#: them would need one more result in memory for each doubling of their number.
LARGE_RESULT = 1 << 16

#: NumPy's sign of an argument that was not given.
_NONE: Any = getattr(np, "_NoValue")  # noqa: B009

#: Ufuncs for which the result over parts, joined by the ufunc, is the result over the whole.
_JOINED = frozenset((
    np.add, np.multiply, np.minimum, np.maximum, np.fmin, np.fmax, np.logical_and, np.logical_or,
    np.logical_xor, np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.gcd, np.hypot,
    np.logaddexp, np.logaddexp2,
))  # fmt: skip

#: Those of them for which a value may be joined more than once, so that each part takes `initial`.
_IDEMPOTENT = frozenset((
    np.minimum, np.maximum, np.fmin, np.fmax, np.logical_and, np.logical_or, np.bitwise_and,
    np.bitwise_or, np.gcd,
))  # fmt: skip

_LOGICAL = frozenset((np.logical_and, np.logical_or, np.logical_xor))


# ---- parts of a tensor ---------------------------------------------------------------------------


def _steps(shape: tuple[int, ...], room: int) -> list[int]:
    """Returns the lengths of a tile of at most `room` elements, at least 1, whose bytes lie
    together."""
    steps: list[int] = []
    for n in reversed(shape):
        step = min(max(n, 1), room)
        room //= step
        steps.insert(0, step)
        if step < n:
            room = 1
    return steps


def _ranges(shape: tuple[int, ...], steps: list[int]) -> list[list[slice]]:
    return [
        [slice(at, min(at + step, n)) for at in range(0, n, step)]
        for n, step in zip(shape, steps, strict=True)
    ]


def tiles(shape: tuple[int, ...], itemsize: int) -> Iterator[Index]:
    """Yields indices of parts of an array that cover it in C order, each of at most a block."""
    return itertools.product(*_ranges(shape, _steps(shape, max(BLOCK_BYTES // itemsize, 1))))


def lines(shape: tuple[int, ...], itemsize: int, axis: int, page_size: int) -> Iterator[Index]:
    """Yields indices of parts of an array, each with all elements along `axis`: at most a block, or
    one line of elements; across another axis than the last at least a page, so that no page is
    opened many times."""
    room = max(BLOCK_BYTES // (itemsize * max(shape[axis], 1)), 1)
    if axis < len(shape) - 1:
        room = max(room, page_size // itemsize)
    steps = _steps(tuple(1 if at == axis else n for at, n in enumerate(shape)), room)
    steps[axis] = max(shape[axis], 1)
    return itertools.product(*_ranges(shape, steps))


def _grouped(tensor: Any, axes: tuple[int, ...]) -> Iterator[tuple[Index, Iterator[Index]]]:
    """Yields, for each part of the result with its reduced axes kept, its index and those of the
    tiles that it is made of, in C order."""
    shape = tensor.shape
    ranges = _ranges(shape, _steps(shape, max(BLOCK_BYTES // tensor.itemsize, 1)))
    one = [slice(0, 1)]
    kept = [one if axis in axes else parts for axis, parts in enumerate(ranges)]
    for place in itertools.product(*kept):
        inner = [ranges[axis] if axis in axes else [at] for axis, at in enumerate(place)]
        yield place, itertools.product(*inner)


def _pairwise(parts: Iterable[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Returns all parts joined, neighbours of equal weight first."""
    stack: list[tuple[int, Any]] = []
    for part in parts:
        weight = 0
        large = (part[0] if isinstance(part, tuple) else part).nbytes >= LARGE_RESULT
        while stack and (large or stack[-1][0] == weight):
            part = join(stack.pop()[1], part)
            weight += 1
        stack.append((weight, part))
    found = stack.pop()[1]
    while stack:
        found = join(stack.pop()[1], found)
    return found


def _folded(
    tensor: Any,
    axes: tuple[int, ...],
    part: Callable[[Index], Array],
    join: Callable[[Any, Any], Any],
) -> Array:
    """Returns the result of all tiles, with each reduced axis kept with length 1."""
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(tensor.shape))
    result: Array | None = None
    for place, inner in _grouped(tensor, axes):
        found = _pairwise(map(part, inner), join)
        if result is None:
            if found.shape == shape:
                return np.asarray(found)
            result = np.empty(shape, found.dtype)
        result[place] = found
    assert result is not None, "no empty tensor comes here"
    return result


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """Returns the axes as numbers from 0 on. NumPy has seen that they are good."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(int(one) % ndim for one in (axis if isinstance(axis, tuple) else (axis,)))


def _probe(tensor: Any) -> Array:
    return np.zeros((1,) * tensor.ndim, tensor.dtype)


def _is_small(tensor: Any) -> bool:
    return tensor.nbytes <= BLOCK_BYTES or not tensor.ndim


class _Spread:
    """An array or tensor that NumPy would broadcast to the shape of another, tile by tile."""

    def __init__(self, values: Any, shape: tuple[int, ...]) -> None:
        self.values = values if hasattr(values, "dtype") else np.asarray(values)
        self.shape = shape

    def check(self) -> None:
        """Raises ValueError for a shape that is not broadcast to the other one."""
        if np.broadcast_shapes(self.values.shape, self.shape) != self.shape:
            raise ValueError(
                f"operands could not be broadcast together with shapes {self.values.shape} "
                f"{self.shape}"
            )

    def __getitem__(self, index: Index) -> Array:
        lengths = self.values.shape
        places = index[len(index) - len(lengths) :]
        return np.asarray(
            self.values[
                tuple(slice(0, 1) if n == 1 else at for n, at in zip(lengths, places, strict=True))
            ]
        )

    def counted(self, tensor: Any, axes: tuple[int, ...]) -> Array:
        """Returns how many values are True, with the reduced axes kept."""

        def part(index: Index) -> Array:
            lengths = tuple(at.stop - at.start for at in index)
            mask = np.broadcast_to(self[index], lengths)
            return np.asarray(np.add.reduce(mask, axis=axes, dtype=np.intp, keepdims=True))

        return _folded(tensor, axes, part, np.add)


def _mask(where: Any, tensor: Any) -> tuple[_Spread | None, dict[str, Any]]:
    """Returns a `where` by tiles, None if it lets all through, and what stands for it in a
    probe."""
    if where is True or where is _NONE:
        return None, {}
    values = where if hasattr(where, "dtype") else np.asarray(where, bool)
    spread = _Spread(values, tensor.shape)
    return spread, {"where": np.ones((1,) * tensor.ndim, spread.values.dtype)}


def _given(**options: Any) -> dict[str, Any]:
    """Returns the arguments that were given."""
    return {name: value for name, value in options.items() if value is not _NONE}


# ---- ufuncs --------------------------------------------------------------------------------------


def _parts(
    ufunc: np.ufunc, tensor: Any, axes: tuple[int, ...], mask: _Spread | None, options: Any
) -> Array:
    """Returns the reduction of a tensor, with the reduced axes kept."""

    def part(index: Index) -> Array:
        more = options if mask is None else {**options, "where": mask[index]}
        return np.asarray(ufunc.reduce(tensor[index], axis=axes, keepdims=True, **more))

    return _folded(tensor, axes, part, ufunc)


def reduce(
    ufunc: np.ufunc,
    tensor: Any,
    axis: Any = 0,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = _NONE,
    where: Any = True,
) -> Any:
    """Returns ufunc.reduce(). Leaves to NumPy the ufuncs for which parts cannot be joined, such as
    subtract, and results of objects."""
    if ufunc not in _JOINED or _is_small(tensor):
        return NotImplemented
    if isinstance(out, tuple):
        (out,) = out
    if not (out is None or isinstance(out, np.ndarray)):
        return ufunc.reduce(_probe(tensor), axis=axis, out=out)  # raises NumPy's error
    kind = dtype
    if kind is None and out is not None and ufunc not in _LOGICAL:
        kind = out.dtype
    mask, shown = _mask(where, tensor)
    probe = ufunc.reduce(
        _probe(tensor), axis=axis, dtype=kind, keepdims=True, **shown, **_given(initial=initial)
    )
    if np.asarray(probe).dtype.hasobject:
        return NotImplemented
    if mask is not None:
        mask.check()
    each: dict[str, Any] = {"dtype": kind}
    if initial is None or ufunc in _IDEMPOTENT:
        each.update(_given(initial=initial))
    found = _parts(ufunc, tensor, _axes(axis, tensor.ndim), mask, each)
    return ufunc.reduce(
        found, axis=axis, dtype=dtype, out=out, keepdims=bool(keepdims), **_given(initial=initial)
    )


def _kept(keepdims: Any) -> bool:
    """Returns keepdims of a function, which NumPy's default of its own stands for False in."""
    return False if keepdims is _NONE else bool(keepdims)


def _function(ufunc: np.ufunc) -> Callable[..., Any]:
    """Returns np.sum() or np.prod() for tensors."""

    def function(
        a: Any,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = _NONE,
        where: Any = True,
    ) -> Any:
        return reduce(ufunc, a, axis, dtype, out, _kept(keepdims), initial, where)

    return function


def _extreme(ufunc: np.ufunc) -> Callable[..., Any]:
    """Returns np.min() or np.max() for tensors."""

    def function(
        a: Any,
        axis: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = _NONE,
        where: Any = True,
    ) -> Any:
        return reduce(ufunc, a, axis, None, out, _kept(keepdims), initial, where)

    return function


def _logical(ufunc: np.ufunc) -> Callable[..., Any]:
    """Returns np.any() or np.all() for tensors."""

    def function(
        a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True
    ) -> Any:
        return reduce(ufunc, a, axis, bool, out, _kept(keepdims), where=where)

    return function


def ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Returns np.ptp(): the largest element less the smallest."""
    if _is_small(a):
        return NotImplemented
    kept = _kept(keepdims)
    highest = reduce(np.maximum, a, axis, None, out, kept)
    return np.subtract(highest, reduce(np.minimum, a, axis, None, None, kept), out=out)


# ---- means ---------------------------------------------------------------------------------------


def _summing(tensor: Any, dtype: Any, out: Any) -> tuple[Any, bool]:
    """Returns the type in which NumPy sums for a mean, and whether the result gets narrower
    again."""
    if dtype is not None:
        return dtype, False
    if tensor.dtype.kind in "biu":
        return np.float64, False
    half = tensor.dtype == np.float16
    return (np.float32 if half else None), half and out is None


def _divided(total: Array, count: Any) -> Array:
    return np.asarray(np.true_divide(total, count, out=total, casting="unsafe"))


def _count(tensor: Any, axes: tuple[int, ...], mask: _Spread | None) -> Any:
    """Returns how many elements a mean is of: a number, or an array with the reduced axes kept."""
    if mask is None:
        return math.prod(tensor.shape[axis] for axis in axes)
    return mask.counted(tensor, axes)


def mean(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    *,
    where: Any = True,
) -> Any:
    """Returns np.mean(), summed in the type in which NumPy sums."""
    if _is_small(a):
        return NotImplemented
    mask, shown = _mask(where, a)
    np.mean(_probe(a), axis=axis, dtype=dtype, keepdims=True, **shown)
    if mask is not None:
        mask.check()
    axes = _axes(axis, a.ndim)
    kind, half = _summing(a, dtype, out)
    count = _count(a, axes, mask)
    if not np.all(count):
        warnings.warn("Mean of empty slice.", RuntimeWarning, stacklevel=3)
    found = _divided(_parts(np.add, a, axes, mask, {"dtype": kind}), count)
    if half:
        found = found.astype(np.float16)
    # The mean of one element is itself: NumPy makes the form of the result.
    return np.mean(found, axis=axis, dtype=dtype, out=out, keepdims=_kept(keepdims))


def var(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: Any = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = None,
    correction: Any = _NONE,
) -> Any:
    """Returns np.var(), in two passes as NumPy does."""
    return _spread_of(a, axis, dtype, out, ddof, keepdims, where, mean, correction, False)


def std(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: Any = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = None,
    correction: Any = _NONE,
) -> Any:
    """Returns np.std(), the root of np.var()."""
    return _spread_of(a, axis, dtype, out, ddof, keepdims, where, mean, correction, True)


def _spread_of(
    a: Any,
    axis: Any,
    dtype: Any,
    out: Any,
    ddof: Any,
    keepdims: Any,
    where: Any,
    mean: Any,
    correction: Any,
    rooted: bool,
) -> Any:
    if _is_small(a):
        return NotImplemented
    if correction is not _NONE:
        if ddof != 0:
            raise ValueError("ddof and correction can't be provided simultaneously.")
        ddof = correction
    mask, shown = _mask(where, a)
    np.var(_probe(a), axis=axis, dtype=dtype, keepdims=True, **shown)
    if mask is not None:
        mask.check()
    axes = _axes(axis, a.ndim)
    kind, half = _summing(a, dtype, out)
    count = _count(a, axes, mask)
    degrees = np.maximum(np.subtract(count, ddof), 0)
    if not np.all(degrees):
        warnings.warn("Degrees of freedom <= 0 for slice", RuntimeWarning, stacklevel=4)
    if mean is None or mean is _NONE:
        mean = _divided(_parts(np.add, a, axes, mask, {"dtype": kind}), count)
    middle = _Spread(mean, a.shape)
    middle.check()

    def part(index: Index) -> Array:
        squares = _squares(a[index], middle[index])
        more = {} if mask is None else {"where": mask[index]}
        return np.asarray(np.add.reduce(squares, axis=axes, dtype=kind, keepdims=True, **more))

    found = _divided(_folded(a, axes, part, np.add), degrees)
    if rooted:
        number = found.size == 1 and not _kept(keepdims)
        # NumPy rounds a number to the type that was asked for, and refuses to round an array.
        found = np.sqrt(found).astype(found.dtype) if number else np.sqrt(found, out=found)
    if half:
        found = found.astype(np.float16)
    return np.mean(found, axis=axis, dtype=found.dtype, out=out, keepdims=_kept(keepdims))


def _squares(values: Array, middle: Array) -> Array:
    """Returns |values - middle| ** 2, by way of memory that is wiped."""
    kind = np.subtract(np.empty(0, values.dtype), np.empty(0, middle.dtype)).dtype
    apart = np.subtract(values, middle, out=wiped.empty(values.shape, kind))
    if apart.dtype.kind == "c":
        real, imag = apart.real, apart.imag
        np.multiply(real, real, out=real)
        np.multiply(imag, imag, out=imag)
        return np.asarray(np.add(real, imag, out=real))
    return np.asarray(np.multiply(apart, apart, out=apart))


# ---- places and counts ---------------------------------------------------------------------------


def _arg(name: str) -> Callable[..., Any]:
    """Returns np.argmin() or np.argmax() for tensors."""
    search: Any = getattr(np, name)

    def function(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        if _is_small(a):
            return NotImplemented
        search(_probe(a), axis=axis)
        axes = _axes(axis, a.ndim)
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
        for place, inner in _grouped(a, axes):
            found[place] = _pairwise(map(part, inner), join)[0]
        return np.add.reduce(found, axis=axis, out=out, keepdims=_kept(keepdims))

    return function


def count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    """Returns np.count_nonzero()."""
    if _is_small(a):
        return NotImplemented
    number = np.count_nonzero(_probe(a), axis=axis, keepdims=keepdims)
    axes = _axes(axis, a.ndim)

    def part(index: Index) -> Array:
        return np.asarray(np.count_nonzero(a[index], axis=axes, keepdims=True))

    counted: Any = _folded(a, axes, part, np.add)
    found = counted.sum(axis=axis, keepdims=bool(keepdims))
    return int(found) if type(number) is int else found


# ---- some elements -------------------------------------------------------------------------------


def take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
    """Returns np.take(), which opens the pages of what is taken. Leaves `out` to NumPy."""
    if _is_small(a) or out is not None:
        return NotImplemented
    places = np.asarray(indices).astype(np.intp)
    np.take(_probe(a), np.zeros((), np.intp), axis=axis, mode=mode)
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
    if _is_small(a):
        return NotImplemented
    np.diagonal(_probe(a), offset, axis1, axis2)
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
    if _is_small(a):
        return NotImplemented
    found = diagonal(a, offset, axis1, axis2)
    return np.add.reduce(found, axis=-1, dtype=dtype, out=out)


def put(a: Any, ind: Any, v: Any, mode: Any = "raise") -> None:
    """Does np.put()."""
    a.put(ind, v, mode)


#: NumPy's functions that write into their first argument, and need not open it as a whole.
IN_PLACE: dict[Any, Callable[..., Any]] = {np.put: put}

#: NumPy's functions that are done by blocks, with what does them.
BOUNDED: dict[Any, Callable[..., Any]] = {
    np.sum: _function(np.add),
    np.prod: _function(np.multiply),
    np.min: _extreme(np.minimum),
    np.max: _extreme(np.maximum),
    np.amin: _extreme(np.minimum),
    np.amax: _extreme(np.maximum),
    np.any: _logical(np.logical_or),
    np.all: _logical(np.logical_and),
    np.ptp: ptp,
    np.mean: mean,
    np.var: var,
    np.std: std,
    np.argmin: _arg("argmin"),
    np.argmax: _arg("argmax"),
    np.count_nonzero: count_nonzero,
    np.take: take,
    np.diagonal: diagonal,
    np.trace: trace,
}
