# SPDX-License-Identifier: Apache-2.0
"""Parts of a tensor that is larger than a block, which are opened one after the other, and how
their results become one.

The blocks of one result are joined in pairs, like NumPy's pairwise sums (Higham, "The accuracy of
floating point summation", 1993): the error grows with the logarithm of their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK_BYTES",
    "NONE",
    "Index",
    "Spread",
    "axes_of",
    "folded",
    "given",
    "grouped",
    "is_small",
    "kept",
    "lines",
    "masked",
    "pairwise",
    "probe_of",
    "tiles",
]

Array = npt.NDArray[Any]
Index = tuple[slice, ...]

#: The most plaintext of a tensor at a time.
BLOCK_BYTES = 1 << 20

#: Results of at least this many bytes are joined one after another, as NumPy adds rows: pairs of
#: them would need one more result in memory for each doubling of their number.
LARGE_RESULT = 1 << 16

#: NumPy's sign of an argument that was not given.
NONE: Any = getattr(np, "_NoValue")  # noqa: B009


def steps_of(shape: tuple[int, ...], room: int) -> list[int]:
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


def ranges_of(shape: tuple[int, ...], steps: list[int]) -> list[list[slice]]:
    return [
        [slice(at, min(at + step, n)) for at in range(0, n, step)]
        for n, step in zip(shape, steps, strict=True)
    ]


def tiles(shape: tuple[int, ...], itemsize: int) -> Iterator[Index]:
    """Yields indices of parts of an array that cover it in C order, each of at most a block."""
    return itertools.product(*ranges_of(shape, steps_of(shape, max(BLOCK_BYTES // itemsize, 1))))


def lines(shape: tuple[int, ...], itemsize: int, axis: int, page_size: int) -> Iterator[Index]:
    """Yields indices of parts of an array, each with all elements along `axis`: at most a block, or
    one line of elements; across another axis than the last at least a page, so that no page is
    opened many times."""
    room = max(BLOCK_BYTES // (itemsize * max(shape[axis], 1)), 1)
    if axis < len(shape) - 1:
        room = max(room, page_size // itemsize)
    steps = steps_of(tuple(1 if at == axis else n for at, n in enumerate(shape)), room)
    steps[axis] = max(shape[axis], 1)
    return itertools.product(*ranges_of(shape, steps))


def grouped(tensor: Any, axes: tuple[int, ...]) -> Iterator[tuple[Index, Iterator[Index]]]:
    """Yields, for each part of the result with its reduced axes kept, its index and those of the
    tiles that it is made of, in C order."""
    shape = tensor.shape
    ranges = ranges_of(shape, steps_of(shape, max(BLOCK_BYTES // tensor.itemsize, 1)))
    one = [slice(0, 1)]
    kept = [one if axis in axes else parts for axis, parts in enumerate(ranges)]
    for place in itertools.product(*kept):
        inner = [ranges[axis] if axis in axes else [at] for axis, at in enumerate(place)]
        yield place, itertools.product(*inner)


def pairwise(parts: Iterable[Any], join: Callable[[Any, Any], Any]) -> Any:
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


def folded(
    tensor: Any,
    axes: tuple[int, ...],
    part: Callable[[Index], Array],
    join: Callable[[Any, Any], Any],
) -> Array:
    """Returns the result of all tiles, with each reduced axis kept with length 1."""
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(tensor.shape))
    result: Array | None = None
    for place, inner in grouped(tensor, axes):
        found = pairwise(map(part, inner), join)
        if result is None:
            if found.shape == shape:
                return np.asarray(found)
            result = np.empty(shape, found.dtype)
        result[place] = found
    assert result is not None, "no empty tensor comes here"
    return result


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Returns the axes as numbers from 0 on. NumPy has seen that they are good."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(int(one) % ndim for one in (axis if isinstance(axis, tuple) else (axis,)))


def probe_of(tensor: Any) -> Array:
    return np.zeros((1,) * tensor.ndim, tensor.dtype)


def is_small(tensor: Any) -> bool:
    return tensor.nbytes <= BLOCK_BYTES or not tensor.ndim


class Spread:
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

        return folded(tensor, axes, part, np.add)


def masked(where: Any, tensor: Any) -> tuple[Spread | None, dict[str, Any]]:
    """Returns a `where` by tiles, None if it lets all through, and what stands for it in a
    probe."""
    if where is True or where is NONE:
        return None, {}
    values = where if hasattr(where, "dtype") else np.asarray(where, bool)
    spread = Spread(values, tensor.shape)
    return spread, {"where": np.ones((1,) * tensor.ndim, spread.values.dtype)}


def given(**options: Any) -> dict[str, Any]:
    """Returns the arguments that were given."""
    return {name: value for name, value in options.items() if value is not NONE}


def kept(keepdims: Any) -> bool:
    """Returns keepdims of a function, which NumPy's default of its own stands for False in."""
    return False if keepdims is NONE else bool(keepdims)
