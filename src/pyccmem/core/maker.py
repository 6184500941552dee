# SPDX-License-Identifier: Apache-2.0
"""TensorMaker: an object that makes tensors in a place of its own, as an Arena does."""

from __future__ import annotations

from typing import Any

from .resource import Resource

__all__ = ["TensorMaker", "copied", "encrypted", "zeros"]


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


def encrypted(maker: TensorMaker, source: Any, name: str | None) -> Any:
    """Returns a tensor with the contents of an array."""
    return maker._encrypted(source, name)


def zeros(maker: TensorMaker, shape: Any, dtype: Any, name: str | None) -> Any:
    """Returns a tensor of zeros. Raises ArgumentError, ArgumentTypeError."""
    return maker._zeros(shape, dtype, name)


def copied(maker: TensorMaker, source: Any, name: str | None) -> Any:
    """Returns a tensor with the contents of another."""
    return maker._copied(source, name)
