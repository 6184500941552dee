# SPDX-License-Identifier: Apache-2.0
"""Puts quantised tensors of torch together as blocks, where nothing has to be opened for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..quantized import concatenate
from ._blocks import Blocks
from ._tensor import EncryptedTensor, path_of, stored_of, wrapped

__all__ = ["joined"]


def joined(tensors: Sequence[Any], axis: int, *, stack: bool = False) -> EncryptedTensor | None:
    """Returns torch.cat() of tensors, or with `stack` torch.stack(), as blocks under a key that is
    kept nowhere. None, with nothing done, unless all of them are quantised, of one format and type,
    whole, with their columns in order, and the axis is not the one along which blocks lie. Raises
    what concatenate() raises."""
    found: list[Blocks] = []
    for tensor in tensors:
        stored = stored_of(tensor) if isinstance(tensor, EncryptedTensor) else None
        if not isinstance(stored, Blocks) or path_of(tensor) or stored.order is not None:
            return None
        found.append(stored)
    if not found:
        return None
    first = found[0]
    cores = [one.blocks for one in found]
    if any(one.format != first.format or one.dtype is not first.dtype for one in found):
        return None
    if stack:
        at = axis + cores[0].ndim + 1 if axis < 0 else axis
        if not 0 <= at < cores[0].ndim:
            return None
        if any(core.shape != cores[0].shape for core in cores):
            return None
        cores = [core.reshape(*core.shape[:at], 1, *core.shape[at:]) for core in cores]
    else:
        at = axis + cores[0].ndim if axis < 0 else axis
        if not 0 <= at < cores[0].ndim - 1:
            return None
    core = concatenate(cores, at, name=first.blocks.name)
    return wrapped(Blocks(core, first.dtype, first.key, wipe_results=first.wipe_results))
