# SPDX-License-Identifier: Apache-2.0
"""NumPy's reductions by ufuncs, of tiles that are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .tiles import NONE, Index, Spread, axes_of, folded, given, is_small, kept, masked, probe_of

__all__ = [
    "extreme_function",
    "joined_function",
    "logical_function",
    "ptp",
    "reduce",
    "reduced_parts",
]

Array = npt.NDArray[Any]

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


def reduced_parts(
    ufunc: np.ufunc, tensor: Any, axes: tuple[int, ...], mask: Spread | None, options: Any
) -> Array:
    """Returns the reduction of a tensor, with the reduced axes kept."""

    def part(index: Index) -> Array:
        more = options if mask is None else {**options, "where": mask[index]}
        return np.asarray(ufunc.reduce(tensor[index], axis=axes, keepdims=True, **more))

    return folded(tensor, axes, part, ufunc)


def reduce(
    ufunc: np.ufunc,
    tensor: Any,
    axis: Any = 0,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = NONE,
    where: Any = True,
) -> Any:
    """Returns ufunc.reduce(). Leaves to NumPy the ufuncs for which parts cannot be joined, such as
    subtract, and results of objects."""
    if ufunc not in _JOINED or is_small(tensor):
        return NotImplemented
    if isinstance(out, tuple):
        (out,) = out
    if not (out is None or isinstance(out, np.ndarray)):
        return ufunc.reduce(probe_of(tensor), axis=axis, out=out)  # raises NumPy's error
    kind = dtype
    if kind is None and out is not None and ufunc not in _LOGICAL:
        kind = out.dtype
    mask, shown = masked(where, tensor)
    probe = ufunc.reduce(
        probe_of(tensor), axis=axis, dtype=kind, keepdims=True, **shown, **given(initial=initial)
    )
    if np.asarray(probe).dtype.hasobject:
        return NotImplemented
    if mask is not None:
        mask.check()
    each: dict[str, Any] = {"dtype": kind}
    if initial is None or ufunc in _IDEMPOTENT:
        each.update(given(initial=initial))
    found = reduced_parts(ufunc, tensor, axes_of(axis, tensor.ndim), mask, each)
    return ufunc.reduce(
        found, axis=axis, dtype=dtype, out=out, keepdims=bool(keepdims), **given(initial=initial)
    )


def joined_function(ufunc: np.ufunc) -> Callable[..., Any]:
    """Returns np.sum() or np.prod() for tensors."""

    def function(
        a: Any,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = NONE,
        where: Any = True,
    ) -> Any:
        return reduce(ufunc, a, axis, dtype, out, kept(keepdims), initial, where)

    return function


def extreme_function(ufunc: np.ufunc) -> Callable[..., Any]:
    """Returns np.min() or np.max() for tensors."""

    def function(
        a: Any,
        axis: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = NONE,
        where: Any = True,
    ) -> Any:
        return reduce(ufunc, a, axis, None, out, kept(keepdims), initial, where)

    return function


def logical_function(ufunc: np.ufunc) -> Callable[..., Any]:
    """Returns np.any() or np.all() for tensors."""

    def function(
        a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True
    ) -> Any:
        return reduce(ufunc, a, axis, bool, out, kept(keepdims), where=where)

    return function


def ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Returns np.ptp(): the largest element less the smallest."""
    if is_small(a):
        return NotImplemented
    keeps = kept(keepdims)
    highest = reduce(np.maximum, a, axis, None, out, keeps)
    return np.subtract(highest, reduce(np.minimum, a, axis, None, None, keeps), out=out)
