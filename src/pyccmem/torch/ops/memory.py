# SPDX-License-Identifier: Apache-2.0
"""Functions that depend on where the data lies: devices, addresses, arrays over the memory."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ... import errors
from .._tensor import device_refused, opened
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
        for name in ("cuda", "xpu", "ipu", "hpu", "mtia", "pin_memory")
        if hasattr(Tensor, name)
    )
)
def _other_device(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = kwargs.get("device", args[1] if len(args) > 1 else None)
    device_refused(function.__name__ if given is None else given)


@overrides(Tensor.share_memory_)
def _share_memory(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        "An EncryptedTensor is not moved to shared memory, where two processes would seal what "
        "they write under one key. Processes that load one sealed file share its pages; a model "
        "that is given to another process is copied there as ciphertext."
    )


# ---- memory --------------------------------------------------------------------------------------


@overrides(Tensor.numpy)
def _numpy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns a read-only array, because writes to it would be lost."""
    array = opened(args[0]).numpy()
    array.flags.writeable = False
    return array


_NO_ADDRESS = (
    "An EncryptedTensor has no plain data with an address or a storage, so that savers such as "
    "safetensors.torch, huggingface_hub and accelerate cannot write it. For a sealed file use "
    "pyccmem.torch.save_model(model, path, key=...), pyccmem.torch.save_file(), "
    "pyccmem.transformers.save_pretrained(model, directory, key=...) or torch.save(); for a plain "
    "one first decrypt: "
    "pyccmem.torch.decrypt_module(model), or tensor.decrypt()."
)


@overrides(Tensor.data_ptr, Tensor.apply_, Tensor.map_, Tensor.map2_, Tensor.__dlpack__)
def _no_address(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.NoAddressError(_NO_ADDRESS)


def _no_storage() -> NoReturn:
    # Not a NotImplementedError: after one of those, savers take 0 for the address of all storages,
    # and say that the tensors are one.
    raise errors.ArgumentError(_NO_ADDRESS)


@overrides(Tensor.untyped_storage, Tensor.storage, torch.Tensor._typed_storage)
def _storage(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns torch's storage, which has no memory, for those who look at its size or identity. Its
    address is refused with a sentence."""
    storage = default(function, args, kwargs)
    getattr(storage, "_untyped_storage", storage).data_ptr = _no_storage
    return storage


@overrides(Tensor.data.__get__)  # type: ignore[attr-defined]
def _data(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0].detach()


@overrides(Tensor.__array__)
def _array(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    array = _numpy(function, args, {})
    dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
    return array if dtype is None else array.astype(dtype, copy=False)


@overrides(Tensor.is_shared, Tensor.is_pinned)
def _is_shared(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return False
