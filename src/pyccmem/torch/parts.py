# SPDX-License-Identifier: Apache-2.0
"""An encrypted tensor as what it is made of, and made of it again in another process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..keys import Key
from ..tensor import EncryptedTensor as Core
from ._blocks import Blocks
from ._stored import spare_key
from ._tensor import EncryptedTensor, opened, path_of, real
from .ops.copies import encrypted

__all__ = ["Kind", "core_of", "made_of", "plain_of", "spare_key"]


class Kind(NamedTuple):
    """What a tensor is besides its data: texts and truths alone."""

    dtype: str
    parameter: bool
    asks: bool  # for gradients
    activations: str


def core_of(tensor: EncryptedTensor) -> tuple[Core, Kind] | None:
    """Returns the elements of a tensor, one after the other, and what it is besides; of a view in a
    store of its own. Tensors that share data give the same core. None for a quantised tensor, which
    pickle takes apart into tensors that are none."""
    stored = real(tensor)
    asks = tensor.is_leaf and tensor.requires_grad
    kind = Kind(
        str(tensor.dtype).removeprefix("torch."),
        bool(getattr(tensor, "_is_param", False)),
        asks,
        tensor.activations,
    )
    if path_of(tensor):
        return real(encrypted(opened(tensor), stored)).core, kind
    return None if isinstance(stored, Blocks) else (stored.core, kind)


def made_of(core: Core, kind: Kind, key: Key | None) -> EncryptedTensor:
    """Returns the tensor again, over `core`. Raises ArgumentError for a kind that none has."""
    dtype = getattr(torch, kind.dtype)
    new = EncryptedTensor.from_core(core, dtype, key=key, activations=kind.activations)
    if kind.parameter:
        new._is_param = True
    if kind.asks:
        new.requires_grad_(True)
    return new


def plain_of(core: Core, kind: Kind) -> Any:
    """Returns a plain tensor of a core's elements, in memory that is wiped when it goes."""
    plain: torch.Tensor = EncryptedTensor.from_core(core, getattr(torch, kind.dtype)).decrypt()
    if kind.parameter:
        return torch.nn.Parameter(plain, requires_grad=kind.asks)
    return plain.requires_grad_(kind.asks)
