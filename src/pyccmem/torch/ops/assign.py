# SPDX-License-Identifier: Apache-2.0
"""Gives a tensor other data: assignments to `.data`, set_(), resize_(), views in place.

What is plain is encrypted into a store of its own. Other tensors that shared the old data keep it,
as with torch's own tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import errors
from .._stored import Stored
from .._tensor import EncryptedTensor, check_encryptable, path_of, real, share, wrapped
from ..registry import implements, overrides
from .common import default

__all__ = ["become", "encrypted_like"]

aten = torch.ops.aten

_set = Tensor.data.__set__  # type: ignore[attr-defined]


def encrypted_like(value: Tensor, like: EncryptedTensor) -> EncryptedTensor:
    """Encrypts a plain tensor of any shape and type with key, cipher and name of another. Raises
    ArgumentTypeError unless it is a dense tensor on the CPU."""
    check_encryptable(value, "The new data of an EncryptedTensor")
    old = real(like)
    new = Stored.empty(
        tuple(value.shape),
        value.dtype,
        key=old.key,
        like=old.core,
        wipe_results=old.wipe_results,
    )
    new.write_any(new.core, 0, value.detach())
    return wrapped(new)


def become(target: EncryptedTensor, value: EncryptedTensor) -> None:
    """Gives a tensor the data, shape, strides and type of another, whose aliases it joins."""

    def both() -> None:
        with torch._C.DisableTorchFunctionSubclass():
            _set(target, value)  # shape, strides and type
        share(target, value)

    try:
        both()
    except BaseException:
        both()  # a signal's handler may have raised between the two
        raise


@overrides(Tensor.data.__set__)  # type: ignore[attr-defined]
def _set_data(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, value = args
    if not isinstance(target, EncryptedTensor):
        raise errors.ArgumentError(
            "A plain tensor cannot become an encrypted one by an assignment to its data; put the "
            "encrypted one in its place, or use copy_(), which makes a copy in the clear."
        )
    if not isinstance(value, Tensor):
        default(function, args, kwargs)  # torch says what it takes
    become(target, value if isinstance(value, EncryptedTensor) else encrypted_like(value, target))


@implements(
    aten.set_.default,
    aten.set_.source_Storage,
    aten.set_.source_Storage_storage_offset,
    aten.set_.source_Tensor,
    aten.set_.source_Tensor_storage_offset,
)
def _set_source(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Does set_(): a plain tensor, or a part of a storage, is encrypted."""
    target, *source = args
    if not isinstance(target, EncryptedTensor):
        raise errors.ArgumentError(
            "A plain tensor cannot become an encrypted one by set_(); put the encrypted one in its "
            "place, or use copy_(), which makes a copy in the clear."
        )
    if source and isinstance(source[0], EncryptedTensor):
        if len(source) + len(kwargs) > 1:
            raise errors.ArgumentError(
                "set_() takes an EncryptedTensor alone; give a view of the part that is meant."
            )
        become(target, source[0])
    else:
        made = torch.empty(0, dtype=target.dtype)
        become(target, encrypted_like(function(made, *source, **kwargs), target))
    return target


@overrides(Tensor.resize_, Tensor.resize_as_)
def _resize(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Does resize_(): fewer elements are a view of the first ones; more get a store of their own,
    where the new ones are zeros."""
    target = args[0]
    if not isinstance(target, EncryptedTensor):
        return default(function, args, kwargs)
    seen_as: Any = target
    with torch._C.DisableTorchFunctionSubclass():
        # torch finds the shape among its ways to write the arguments, or refuses them.
        seen = torch.empty(tuple(target.shape), dtype=target.dtype, device="meta")
        shape = tuple(function(seen, *args[1:], **kwargs).shape)
    if shape == tuple(target.shape):
        return target
    count = math.prod(shape)
    old = real(target)
    if path_of(target):
        if count > target.numel():
            raise errors.ArgumentError(
                f"A view of an EncryptedTensor has {target.numel()} elements and cannot be resized "
                f"to {count}; clone() it first."
            )
        become(target, seen_as.reshape(-1)[:count].view(shape).clone())
        return target
    if count <= target.numel():
        become(target, seen_as.view(-1)[:count].view(shape))
        return target
    new = old.resized(shape)
    become(target, wrapped(new))
    return target


def _in_place(name: str) -> Any:
    """Makes the handler of a view in place, such as t_(), from the view t()."""
    view = getattr(Tensor, name.removesuffix("_"))

    def handler(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        become(args[0], view(*args, **kwargs))
        return args[0]

    return handler


for _name in ("t_", "transpose_", "swapaxes_", "swapdims_", "unsqueeze_", "squeeze_"):
    overrides(getattr(Tensor, _name))(_in_place(_name))
