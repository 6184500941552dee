# SPDX-License-Identifier: Apache-2.0
"""Matrix: where an encrypted matrix lies, which is all that a product must know."""

from __future__ import annotations

from typing import Any, NamedTuple

from .store import Store

__all__ = ["Matrix"]


class Matrix(NamedTuple):
    """An encrypted matrix in C order, from byte `offset` of a store on."""

    store: Store
    offset: int
    rows: int
    cols: int
    dtype: Any  # of an element: the type object, with an itemsize, of the framework that multiplies

    @property
    def nbytes(self) -> int:
        """Bytes of all elements in the clear."""
        return self.rows * self.cols * int(self.dtype.itemsize)
