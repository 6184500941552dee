# SPDX-License-Identifier: Apache-2.0
"""Sealed files with quantised tensors among the others. The file keeps their blocks as
pyccmem.safetensors does, and what torch needs beside them in an entry of the metadata; see
checkpoints/values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from .. import errors, safetensors
from ..checkpoints.values import Values, values_in, values_text, wrong_values
from ..keys import Key
from ..quantized import QuantizedTensor
from ._blocks import Blocks, checked_order
from ._results import wipes
from ._tensor import EncryptedTensor, path_of, stored_of, wrapped

__all__ = ["load_sealed", "save_sealed"]


def _taken_apart(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what a file holds of tensors by name, and the entry for its metadata: of quantised
    tensors their blocks and orders of columns. Raises ArgumentError for names that two tensors
    would have."""
    found: dict[str, Any] = {}
    entries: dict[str, Values] = {}
    for name, tensor in tensors.items():
        stored = stored_of(tensor) if isinstance(tensor, EncryptedTensor) else None
        if not isinstance(stored, Blocks) or path_of(tensor):
            found[name] = tensor
            continue
        order = None if stored.order is None else f"{name}.order"
        if order in tensors:
            raise errors.ArgumentError(
                f"The quantised tensor {name!a} has a part that a file would call {order!a}, and "
                f"there is a tensor of this name; give that another."
            )
        found[name] = stored.blocks
        if order is not None:
            found[order] = stored.order
        entries[name] = str(stored.dtype).removeprefix("torch."), order
    return found, values_text(entries)


def save_sealed(
    tensors: Mapping[str, Any],
    path: str | os.PathLike[str],
    key: Any,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> str:
    """Does pyccmem.safetensors.save_file() for tensors of which some are quantised. Raises what
    that raises."""
    found, entry = _taken_apart(tensors)
    return safetensors.save_file(found, path, {**(metadata or {}), **entry}, key=key, **options)


def load_sealed(
    path: str | os.PathLike[str],
    key: Any,
    *,
    mmap: bool = True,
    activations: str = "plain",
    expect: Any = None,
    context: Any = None,
) -> dict[str, EncryptedTensor]:
    """Returns the tensors of a sealed file by name, nothing of which is opened but orders of
    columns. Raises what pyccmem.safetensors.load_file() raises, and FileFormatError for quantised
    tensors that are not what the file says."""
    wipe = wipes(activations)
    own = key if isinstance(key, Key) else None
    with safetensors.safe_open(
        path, "np", key=key, sealed=True, mmap=mmap, expect=expect, context=context
    ) as file:
        entries = values_in(file.metadata())
        cores = file.get_tensors()
    try:
        found: dict[str, EncryptedTensor] = {}
        orders = {order for _, order in entries.values() if order is not None}
        for name, core in cores.items():
            if isinstance(core, QuantizedTensor):
                dtype, named = entries.get(name, ("float32", None))
                order = None if named is None else _order(name, named, core, cores)
                kind = getattr(torch, dtype)
                stored = Blocks(core, kind, own, wipe_results=wipe, order=order)
                found[name] = wrapped(stored)
            elif name not in orders:
                found[name] = EncryptedTensor.from_core(core, key=own, activations=activations)
    except BaseException:
        for core in cores.values():
            core.close()
        raise
    return found


def _order(name: str, named: str, core: QuantizedTensor, cores: Mapping[str, Any]) -> Any:
    order = cores.get(named)
    if order is None or isinstance(order, QuantizedTensor):
        raise wrong_values(f"{name!a} needs {named!a}, which is not in the file")
    try:
        return checked_order(order, core)
    except errors.ArgumentError as error:
        raise wrong_values(f"{name!a} does not fit: {str(error).rstrip('.')}") from None
