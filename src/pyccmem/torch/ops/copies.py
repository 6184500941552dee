# SPDX-License-Identifier: Apache-2.0
"""Copies and conversions, which are encrypted like their source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._results import converted
from .._stored import Stored
from .._tensor import EncryptedTensor, device_refused, opened, stored_of, whole, wrapped
from ..registry import implements
from .common import open_all

__all__ = ["encrypted"]

aten = torch.ops.aten


def _copied(tensor: EncryptedTensor, dtype: torch.dtype) -> Any:
    """Returns the values as type `dtype`: encrypted, but plain while tracing."""
    stored = stored_of(tensor)
    if stored is None:
        return opened(tensor).to(dtype, copy=True)
    if whole(tensor) is not None:
        return wrapped(stored.twin() if dtype is stored.dtype else stored.copied(dtype))
    return encrypted(converted(opened(tensor), dtype), stored)


def encrypted(values: Tensor, like: Stored) -> EncryptedTensor:
    """Encrypts values with the key, cipher and name of another tensor."""
    if values.is_conj() or values.is_neg() or not values.is_contiguous():
        values = converted(values, values.dtype)
    new = Stored.empty(
        tuple(values.shape),
        values.dtype,
        key=like.key,
        like=like.core,
        wipe_results=like.wipe_results,
    )
    new.write_run(new.core, 0, values)
    return wrapped(new)


@implements(aten.clone.default)
def _clone(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _copied(args[0], args[0].dtype)


@implements(aten.constant_pad_nd.default)
def _pad(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Without anything to add, as where transformers ties a bias, a copy like all others."""
    if isinstance(args[0], EncryptedTensor) and not any(args[1]):
        return _copied(args[0], args[0].dtype)
    return open_all(function, args, kwargs)


@implements(aten._to_copy.default)
def _to_copy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, device = args[0], kwargs.get("device")
    dtype = kwargs.get("dtype") or tensor.dtype
    if device is not None and torch.device(device).type == "meta":
        return torch.empty(tensor.shape, dtype=dtype, device="meta")
    if device is not None and torch.device(device).type != "cpu":
        device_refused(device)
    return _copied(tensor, dtype)


@implements(aten.empty_like.default)
def _empty_like(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, device = args[0], kwargs.get("device")
    dtype = kwargs.get("dtype") or tensor.dtype
    kind = "cpu" if device is None else torch.device(device).type
    stored = stored_of(tensor)
    if kind == "meta" or stored is None:
        return torch.empty(tensor.shape, dtype=dtype, device=kind)
    if kind != "cpu":
        device_refused(device)
    return wrapped(
        Stored.empty(
            tuple(tensor.shape),
            dtype,
            key=stored.key,
            like=stored.core,
            wipe_results=stored.wipe_results,
        )
    )
