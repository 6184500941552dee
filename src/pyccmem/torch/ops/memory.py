# SPDX-License-Identifier: Apache-2.0
"""Functions that depend on where the data lies: devices, gradients, addresses, arrays over the
memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import errors
from .._tensor import EncryptedTensor, device_refused, opened, share, training_refused
from ..registry import overrides
from .common import default

__all__: list[str] = []


@overrides(Tensor.to)
def _to(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        device = torch._C._nn._parse_to(*args[1:], **kwargs)[0]
    except (TypeError, RuntimeError):
        device = None  # to(other), or arguments that torch refuses
    if device is not None and device.type not in ("cpu", "meta"):
        device_refused(device)
    return default(function, args, kwargs)


@overrides(
    *(
        getattr(Tensor, name)
        for name in ("cuda", "xpu", "ipu", "hpu", "mtia", "pin_memory", "share_memory_")
        if hasattr(Tensor, name)
    )
)
def _other_device(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = kwargs.get("device", args[1] if len(args) > 1 else None)
    device_refused(function.__name__ if given is None else given)


@overrides(Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def _requires_grad(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = kwargs.get("requires_grad", args[1] if len(args) > 1 else True)
    if wanted:
        training_refused()
    return args[0]


# ---- memory --------------------------------------------------------------------------------------


@overrides(Tensor.numpy)
def _numpy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns a read-only array, because writes to it would be lost."""
    array = opened(args[0]).numpy()
    array.flags.writeable = False
    return array


@overrides(Tensor.data_ptr, Tensor.apply_, Tensor.map_, Tensor.map2_, Tensor.__dlpack__)
def _no_address(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        "An EncryptedTensor has no plain data with an address or a storage; use decrypt(), whose "
        "result has, or core.buffer.ciphertext."
    )


@overrides(Tensor.data.__get__)  # type: ignore[attr-defined]
def _data(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0].detach()


@overrides(Tensor.data.__set__)  # type: ignore[attr-defined]
def _set_data(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, value = args
    if not isinstance(value, EncryptedTensor) or not isinstance(target, EncryptedTensor):
        raise errors.ArgumentError(
            "The data of an EncryptedTensor cannot be replaced by a plain tensor, nor that of a "
            "plain tensor by an encrypted one; use copy_(), which encrypts."
        )
    with torch._C.DisableTorchFunctionSubclass():
        function(target, value)  # sets shape, strides and type
    share(target, value)


@overrides(Tensor.__array__)
def _array(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    array = _numpy(function, args, {})
    dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
    return array if dtype is None else array.astype(dtype, copy=False)


@overrides(Tensor.is_shared, Tensor.is_pinned)
def _is_shared(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return False
