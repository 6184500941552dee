# SPDX-License-Identifier: Apache-2.0
"""The methods of np.ndarray that make numbers of all elements, or of those along axes. They open
1 MiB of the tensor at a time; see blockwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

__all__ = ["NumberMethods"]

_NONE: Any = getattr(np, "_NoValue")  # noqa: B009


class NumberMethods:
    """The methods, for EncryptedTensor."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]: ...

    def sum(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = _NONE,
        where: Any = True,
    ) -> Any:
        """Returns the sum of all elements, or along axes, as np.sum() does, opening 1 MiB of the
        tensor at a time. Integers: NumPy's result. Floating point: within the error of NumPy's own
        order of summation, since blocks are joined in pairs; NumPy's bits for up to 1 MiB.

        Raises what np.sum() raises, and what reading raises: IntegrityError, ClosedError,
        ForkError, OutOfMemoryError. So do the other methods here."""
        return np.sum(self, axis, dtype, out, keepdims, initial, where)

    def prod(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = _NONE,
        where: Any = True,
    ) -> Any:
        """Returns the product, as np.prod() does; as sum()."""
        return np.prod(self, axis, dtype, out, keepdims, initial, where)

    def min(
        self,
        axis: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = _NONE,
        where: Any = True,
    ) -> Any:
        """Returns the smallest element, NumPy's result, opening 1 MiB at a time."""
        return np.min(self, axis, out, keepdims, initial, where)

    def max(
        self,
        axis: Any = None,
        out: Any = None,
        keepdims: Any = False,
        initial: Any = _NONE,
        where: Any = True,
    ) -> Any:
        """Returns the largest element, NumPy's result, opening 1 MiB at a time."""
        return np.max(self, axis, out, keepdims, initial, where)

    def argmin(self, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        """Returns the place of the first smallest element, opening 1 MiB at a time."""
        return np.argmin(self, axis, out, **_if(keepdims))

    def argmax(self, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        """Returns the place of the first largest element, opening 1 MiB at a time."""
        return np.argmax(self, axis, out, **_if(keepdims))

    def any(
        self, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True
    ) -> Any:
        """Returns whether any element is true, opening 1 MiB at a time."""
        return np.any(self, axis, out, keepdims, where=where)

    def all(
        self, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True
    ) -> Any:
        """Returns whether all elements are true, opening 1 MiB at a time."""
        return np.all(self, axis, out, keepdims, where=where)

    def mean(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: Any = False,
        *,
        where: Any = True,
    ) -> Any:
        """Returns the mean, summed in the type in which np.mean() sums; as sum()."""
        return np.mean(self, axis, dtype, out, keepdims, where=where)

    def var(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        ddof: Any = 0,
        keepdims: Any = False,
        **options: Any,
    ) -> Any:
        """Returns the variance, as np.var() does, of which it takes `where`, `mean` and
        `correction` too. Opens the tensor twice, 1 MiB at a time, and some 2 MiB for squares."""
        return np.var(self, axis, dtype, out, ddof, keepdims, **options)

    def std(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        ddof: Any = 0,
        keepdims: Any = False,
        **options: Any,
    ) -> Any:
        """Returns the standard deviation, the root of var()."""
        return np.std(self, axis, dtype, out, ddof, keepdims, **options)

    def trace(
        self,
        offset: Any = 0,
        axis1: Any = 0,
        axis2: Any = 1,
        dtype: Any = None,
        out: Any = None,
    ) -> Any:
        """Returns the sum of the diagonal, opening its pages alone."""
        return np.trace(self, offset, axis1, axis2, dtype, out)


def _if(keepdims: Any) -> dict[str, Any]:
    """Returns keepdims where it is true: NumPy 1.22 has functions without it."""
    return {"keepdims": True} if keepdims else {}
