# SPDX-License-Identifier: Apache-2.0
"""Loads and saves sealed files with torch's tensors, by pyccmem.safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import errors
from ..keys import Key
from ..safetensors import load_file as _load_file
from ..safetensors import save_file as _save_file
from ..tensor import EncryptedTensor as Core
from ._results import wipes
from ._stored import spare_key
from ._tensor import EncryptedTensor, opened, path_of, real
from .ops.copies import encrypted

__all__ = ["load_file", "save_file"]


def load_file(
    path: str | os.PathLike[str], *, key: Any, activations: str = "plain", **options: Any
) -> dict[str, EncryptedTensor]:
    """Returns every tensor of a safetensors file by name. The tensors of a sealed file are not
    decrypted; those of a plain file are encrypted on the way. `activations` is "plain" or "wiped",
    see set_activations(), and anything else an ArgumentError. Other arguments and errors are those
    of pyccmem.safetensors.load_file()."""
    wipes(activations)
    kept = key if isinstance(key, Key) else None
    loaded: Mapping[str, Core] = _load_file(path, key=key, **options)
    return {
        name: EncryptedTensor.from_core(core, key=kept, activations=activations)
        for name, core in loaded.items()
    }


def save_file(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], *, key: Any, **options: Any
) -> None:
    """Writes encrypted or plain tensors into a sealed file. Arguments and errors are those of
    pyccmem.safetensors.save_file()."""
    if not isinstance(tensors, Mapping):
        raise errors.ArgumentTypeError(
            f"tensors must be a dict of tensors by name, not {type(tensors).__name__}."
        )
    cores: dict[str, Core] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, EncryptedTensor):
            tensor = EncryptedTensor.from_tensor(tensor, key=spare_key(), name=str(name))
        elif path_of(tensor):
            tensor = encrypted(opened(tensor), real(tensor))
        cores[name] = tensor.core
    _save_file(cores, path, key=key, **options)
