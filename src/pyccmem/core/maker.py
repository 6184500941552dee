# SPDX-License-Identifier: Apache-2.0
"""TensorMaker: an object that makes tensors in a place of its own, as an Arena does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .resource import Resource

__all__ = ["TensorMaker", "copied", "encrypted", "in_order", "put_as", "sealed", "zeros"]


class TensorMaker(Resource):
    """Base of the objects that `arena=` takes. EncryptedTensor uses it through the functions
    below."""

    __slots__ = ()

    def _encrypted(self, source: Any, name: str | None) -> Any:
        raise NotImplementedError

    def _zeros(self, shape: Any, dtype: Any, name: str | None) -> Any:
        raise NotImplementedError

    def _copied(self, source: Any, name: str | None) -> Any:
        raise NotImplementedError

    def _sealed(self, shape: Any, dtype: Any, data: Any, name: str | None) -> Any:
        raise NotImplementedError

    def _in_order(self, shape: Any, dtype: Any, source: Any, put: Any, name: str | None) -> Any:
        raise NotImplementedError


def encrypted(maker: TensorMaker, source: Any, name: str | None) -> Any:
    """Returns a tensor with the contents of an array."""
    return maker._encrypted(source, name)


def zeros(maker: TensorMaker, shape: Any, dtype: Any, name: str | None) -> Any:
    """Returns a tensor of zeros. Raises ArgumentError, ArgumentTypeError."""
    return maker._zeros(shape, dtype, name)


def sealed(maker: TensorMaker, shape: Any, dtype: Any, data: Any, name: str | None) -> Any:
    """Returns a tensor with the contents of the memory at the native pointer `data`, in C order.
    Raises ArgumentError, ArgumentTypeError."""
    return maker._sealed(shape, dtype, data, name)


def in_order(
    maker: TensorMaker, shape: Any, dtype: Any, source: Any, put: Any, name: str | None
) -> Any:
    """Returns a tensor with the elements of an array of any library, wherever they lie: they are
    put in C order some at a time. `put(memory, offset, part)` writes those of a part of `source` to
    `memory`, a buffer, from byte `offset` on. Raises ArgumentError, ArgumentTypeError."""
    return maker._in_order(shape, dtype, source, put, name)


def copied(maker: TensorMaker, source: Any, name: str | None) -> Any:
    """Returns a tensor with the contents of another."""
    return maker._copied(source, name)


def put_as(dtype: Any) -> Callable[[Any, int, Any], None]:
    """Returns the function that in_order() takes for NumPy's arrays: it converts their elements."""

    def put(memory: Any, offset: int, part: Any) -> None:
        np.ndarray(part.shape, dtype, memory, offset)[...] = part

    return put
