# SPDX-License-Identifier: Apache-2.0
"""Hooks for modules of sentence-transformers that read and write weights without transformers, such
as Dense: they call our functions if a file is sealed, a module encrypted, or the file part of a
model that is encrypted while it is loaded."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from .. import safetensors as sealed
from ..torch import EncryptedTensor
from .files import encrypted, load, write
from .keys import encrypts_beside, recent_key, remember

__all__ = ["install"]

_MODULE = "sentence_transformers.base.modules.module"
_FUNCTIONS = ("load_safetensors_model", "load_safetensors_file", "save_safetensors_model")


def install(config: Any) -> None:
    """Installs the hooks, once in a process, if it has imported sentence-transformers. A sentence
    model begins with a model of transformers, whose loading calls this. Its `config`, a
    PyccmemConfig, has the key for the modules that follow."""
    remember(config)
    module: Any = sys.modules.get(_MODULE)
    if module is None or hasattr(module, "_pyccmem_plain"):
        return
    missing = [name for name in _FUNCTIONS if not hasattr(module, name)]
    if missing:
        return  # another version, whose own code finds bytes instead of weights, and refuses
    plain = {name: getattr(module, name) for name in _FUNCTIONS}
    module._pyccmem_plain = plain

    def load_file(path: Any, *args: Any, **options: Any) -> Any:
        return _tensors(path) if _is_ours(path) else plain[_FUNCTIONS[1]](path, *args, **options)

    def load_model(model: Any, path: Any, *args: Any, **options: Any) -> Any:
        if not _is_ours(path):
            return plain[_FUNCTIONS[0]](model, path, *args, **options)
        # An assigned tensor requires a gradient if the parameter it replaces does.
        model.requires_grad_(False)
        missing, unexpected = model.load_state_dict(_tensors(path), strict=False, assign=True)
        return missing, unexpected

    def save_model(model: Any, path: Any, *args: Any, **options: Any) -> None:
        state = model.state_dict()
        if not any(isinstance(tensor, EncryptedTensor) for tensor in state.values()):
            plain[_FUNCTIONS[2]](model, path, *args, **options)
            return
        name = os.fspath(path)
        write(state, name, recent_key(f"saving {name!r}"))

    module.load_safetensors_model = load_model
    module.load_safetensors_file = load_file
    module.save_safetensors_model = save_model


def _is_sealed(path: Any) -> bool:
    return os.path.isfile(path) and sealed.is_sealed(path)


def _is_ours(path: Any) -> bool:
    return _is_sealed(path) or encrypts_beside(os.fspath(path))


def _tensors(path: Any) -> dict[str, torch.Tensor]:
    name = os.fspath(path)
    if not _is_sealed(path):
        return encrypted(name)
    return load(name, recent_key(f"the sealed file {name!r}"))
