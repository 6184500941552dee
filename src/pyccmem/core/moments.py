# SPDX-License-Identifier: Apache-2.0
"""NumPy's means, variances and deviations, of tiles that are joined."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import wiped
from .reductions import reduced_parts
from .tiles import NONE, Index, Spread, axes_of, folded, is_small, kept, masked, probe_of

__all__ = ["mean", "std", "var"]

Array = npt.NDArray[Any]


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


def _count(tensor: Any, axes: tuple[int, ...], mask: Spread | None) -> Any:
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
    if is_small(a):
        return NotImplemented
    mask, shown = masked(where, a)
    np.mean(probe_of(a), axis=axis, dtype=dtype, keepdims=True, **shown)
    if mask is not None:
        mask.check()
    axes = axes_of(axis, a.ndim)
    kind, half = _summing(a, dtype, out)
    count = _count(a, axes, mask)
    if not np.all(count):
        warnings.warn("Mean of empty slice.", RuntimeWarning, stacklevel=3)
    found = _divided(reduced_parts(np.add, a, axes, mask, {"dtype": kind}), count)
    if half:
        found = found.astype(np.float16)
    # The mean of one element is itself: NumPy makes the form of the result.
    return np.mean(found, axis=axis, dtype=dtype, out=out, keepdims=kept(keepdims))


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
    correction: Any = NONE,
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
    correction: Any = NONE,
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
    if is_small(a):
        return NotImplemented
    if correction is not NONE:
        if ddof != 0:
            raise ValueError("ddof and correction can't be provided simultaneously.")
        ddof = correction
    mask, shown = masked(where, a)
    np.var(probe_of(a), axis=axis, dtype=dtype, keepdims=True, **shown)
    if mask is not None:
        mask.check()
    axes = axes_of(axis, a.ndim)
    kind, half = _summing(a, dtype, out)
    count = _count(a, axes, mask)
    degrees = np.maximum(np.subtract(count, ddof), 0)
    if not np.all(degrees):
        warnings.warn("Degrees of freedom <= 0 for slice", RuntimeWarning, stacklevel=4)
    if mean is None or mean is NONE:
        mean = _divided(reduced_parts(np.add, a, axes, mask, {"dtype": kind}), count)
    middle = Spread(mean, a.shape)
    middle.check()

    def part(index: Index) -> Array:
        squares = _squares(a[index], middle[index])
        more = {} if mask is None else {"where": mask[index]}
        return np.asarray(np.add.reduce(squares, axis=axes, dtype=kind, keepdims=True, **more))

    found = _divided(folded(a, axes, part, np.add), degrees)
    if rooted:
        number = found.size == 1 and not kept(keepdims)
        # NumPy rounds a number to the type that was asked for, and refuses to round an array.
        found = np.sqrt(found).astype(found.dtype) if number else np.sqrt(found, out=found)
    if half:
        found = found.astype(np.float16)
    return np.mean(found, axis=axis, dtype=found.dtype, out=out, keepdims=kept(keepdims))


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
