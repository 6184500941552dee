# SPDX-License-Identifier: Apache-2.0
"""save_pretrained() for a model that was encrypted in memory, not loaded from a sealed file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .config import PyccmemConfig
from .keys import find_key
from .quantizer import PyccmemQuantizer

__all__ = ["save_pretrained"]


def save_pretrained(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    key: Any = None,
    context: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Does `model.save_pretrained(directory, **options)`, but seals the files, for a transformers
    model that pyccmem.torch.encrypt_module() encrypted, or for a plain one. `key` is the key to
    seal with, by default the one that from_pretrained() would find; `context` is as for
    pyccmem.safetensors.save_file().

    Raises InvalidKeyError without a key, and what pyccmem.safetensors.save_file() raises.
    """
    found = find_key(key, what=f"saving {os.fspath(directory)!r}")
    before = {name: getattr(owner, name, None) for owner, name in _places(model)}
    quantizer = PyccmemQuantizer(PyccmemConfig(found, context=context), pre_quantized=True)
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
    try:
        model.save_pretrained(directory, **options)
    finally:
        for owner, name in _places(model):
            if before[name] is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before[name])


def _places(model: Any) -> tuple[tuple[Any, str], ...]:
    """Returns the places where transformers keeps the quantizer and its config."""
    return (model, "hf_quantizer"), (model.config, "quantization_config")
