# SPDX-License-Identifier: Apache-2.0
"""Sealed files with quantised tensors among the others.

The file keeps their blocks as pyccmem.safetensors does. What torch needs beside them is in a
metadata entry of its own, "pyccmem.values": a JSON object of one object for each name, with

    dtype    the type of the values, such as "bfloat16"
    order    the name of the tensor with the order of the columns (I32), if they have one; else null

Sealed files authenticate their metadata, and what they say is checked all the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch

from .. import errors, safetensors
from ..keys import Key
from ..quantized import QuantizedTensor
from ._blocks import Blocks, checked_order
from ._results import wipes
from ._tensor import EncryptedTensor, path_of, stored_of, wrapped

__all__ = ["load_sealed", "save_sealed"]

#: The metadata entry.
ENTRY = "pyccmem.values"

_TYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def _taken_apart(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what a file holds of tensors by name, and the entry for its metadata: of quantised
    tensors their blocks and orders of columns. Raises ArgumentError for names that two tensors
    would have."""
    found: dict[str, Any] = {}
    entries: dict[str, Any] = {}
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
        entries[name] = {"dtype": str(stored.dtype).removeprefix("torch."), "order": order}
    return found, {ENTRY: json.dumps(entries)} if entries else {}


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
    path: str | os.PathLike[str], key: Any, *, mmap: bool = True, activations: str = "plain"
) -> dict[str, EncryptedTensor]:
    """Returns the tensors of a sealed file by name, nothing of which is opened but orders of
    columns. Raises what pyccmem.safetensors.load_file() raises, and FileFormatError for quantised
    tensors that are not what the file says."""
    wipe = wipes(activations)
    own = key if isinstance(key, Key) else None
    with safetensors.safe_open(path, "np", key=key, sealed=True, mmap=mmap) as file:
        entries = _entries(file.metadata())
        cores = file.get_tensors()
    try:
        found: dict[str, EncryptedTensor] = {}
        orders = {order for _, order in entries.values() if order is not None}
        for name, core in cores.items():
            if isinstance(core, QuantizedTensor):
                dtype, named = entries.get(name, (torch.float32, None))
                order = None if named is None else _order(name, named, core, cores)
                stored = Blocks(core, dtype, own, wipe_results=wipe, order=order)
                found[name] = wrapped(stored)
            elif name not in orders:
                found[name] = EncryptedTensor.from_core(core, key=own, activations=activations)
    except BaseException:
        for core in cores.values():
            core.close()
        raise
    return found


def _entries(metadata: Mapping[str, str] | None) -> dict[str, tuple[torch.dtype, str | None]]:
    """Returns the types of values and the names of orders that a file gives, by name. Raises
    FileFormatError."""
    text = (metadata or {}).get(ENTRY)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong("it is no JSON object")
    entries = {}
    for name, entry in found.items():
        if not isinstance(entry, dict):
            raise _wrong(f"{name!a} is described by no object")
        dtype, order = entry.get("dtype"), entry.get("order")
        if not isinstance(dtype, str) or dtype not in _TYPES:
            raise _wrong(f"{name!a} has values of {str(dtype)[:80]!a}")
        if not (order is None or isinstance(order, str)):
            raise _wrong(f"{name!a} has an order without a name")
        entries[name] = _TYPES[dtype], order
    return entries


def _order(name: str, named: str, core: QuantizedTensor, cores: Mapping[str, Any]) -> Any:
    order = cores.get(named)
    if order is None or isinstance(order, QuantizedTensor):
        raise _wrong(f"{name!a} needs {named!a}, which is not in the file")
    try:
        return checked_order(order, core)
    except errors.ArgumentError as error:
        raise _wrong(f"{name!a} does not fit: {str(error).rstrip('.')}") from None


def _wrong(why: str) -> errors.FileFormatError:
    return errors.FileFormatError(
        f"The metadata entry {ENTRY!a}, which describes quantised tensors, cannot be right: {why}; "
        f"make the file anew."
    )
