# SPDX-License-Identifier: Apache-2.0
"""Hooks for PEFT, which reads and writes its adapters without transformers: sealed adapters load as
encrypted tensors over their file, and an adapter with encrypted tensors is saved sealed."""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch

from .. import safetensors as sealed
from ..torch import EncryptedTensor
from ..torch._imports import when_imported
from .files import load, write
from .keys import recent_key

__all__ = ["install"]


def install() -> None:
    """Installs the hooks, once in a process: now, or when PEFT is imported."""
    when_imported("peft.peft_model", _hook)


def _hook(peft_model: Any) -> None:
    """Replaces the functions of PEFT by ours. Another version that lacks one stays as it is: its
    own code finds bytes instead of weights, and refuses."""
    from peft.utils import hotswap, save_and_load

    for module, name, wrap in (
        (save_and_load, "safe_load_file", _loading),
        (peft_model, "safe_save_file", _saving),
        (peft_model, "id_tensor_storage", _identifying),
        (hotswap, "hotswap_adapter_from_state_dict", _swapping),
        (peft_model.PeftModel, "load_state_dict", _assigning),
    ):
        plain = getattr(module, name, None)
        if plain is not None and not hasattr(plain, "_pyccmem_plain"):
            wrapped: Any = wrap(plain)
            wrapped._pyccmem_plain = plain
            setattr(module, name, wrapped)


def _loading(plain: Callable[..., Any]) -> Callable[..., Any]:
    def load_file(path: Any, *args: Any, **options: Any) -> Any:
        name = os.fspath(path)
        if not (os.path.isfile(name) and sealed.is_sealed(name)):
            return plain(path, *args, **options)
        return load(name, recent_key(f"the sealed adapter {name!r}", block_first=True))

    return load_file


def _saving(plain: Callable[..., Any]) -> Callable[..., Any]:
    def save_file(tensors: dict[str, Any], path: Any, *args: Any, **options: Any) -> None:
        if not any(isinstance(tensor, EncryptedTensor) for tensor in tensors.values()):
            plain(tensors, path, *args, **options)
            return
        name = os.fspath(path)
        what = f"saving {name!r}, which has encrypted tensors"
        write(tensors, name, recent_key(what, block_first=True))

    return save_file


def _identifying(plain: Callable[..., Any]) -> Callable[..., Any]:
    def identity(tensor: Any) -> Any:
        """Returns what is equal for tensors that share data."""
        if isinstance(tensor, EncryptedTensor):
            return tensor.device, id(tensor.core), tensor.nbytes
        return plain(tensor)

    return identity


def _assigning(plain: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(model: Any, state_dict: Any, *args: Any, **options: Any) -> Any:
        """Takes encrypted tensors over, where copies would be in the clear."""
        if (
            any(isinstance(value, EncryptedTensor) for value in state_dict.values())
            and len(args) < 2
        ):
            options["assign"] = True
        return plain(model, state_dict, *args, **options)

    return load_state_dict


def _swapping(plain: Callable[..., Any]) -> Callable[..., Any]:
    def swap(model: Any, state_dict: Any, *args: Any, **options: Any) -> Any:
        """Encrypts the adapter that goes where the one that comes is encrypted."""
        for name, value in state_dict.items():
            if isinstance(value, EncryptedTensor):
                _encrypt(model, name, value)
        return plain(model, state_dict, *args, **options)

    return swap


def _encrypt(model: Any, name: str, like: EncryptedTensor) -> None:
    """Encrypts a plain parameter of a model, with the key of another tensor, and overwrites it."""
    path, _, last = name.rpartition(".")
    try:
        module = attrgetter(path)(model) if path else model
        old = getattr(module, last)
    except AttributeError:
        return  # PEFT says what is wrong
    if isinstance(old, torch.nn.Parameter) and not isinstance(old, EncryptedTensor):
        new: Any = torch.nn.Parameter(like.detach(), requires_grad=old.requires_grad)
        new.data = old.data
        setattr(module, last, new)
        old.data.zero_()
