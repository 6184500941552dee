# SPDX-License-Identifier: Apache-2.0
"""The functions of elements that a forward pass calls most: opens without a detour by the
dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._results import pooled
from .._tensor import EncryptedTensor, asks_wiping, opened
from ..registry import overrides
from .common import default, transformed
from .gradients import asks_gradient

__all__: list[str] = []


@overrides(
    F.layer_norm,
    torch.layer_norm,
    torch.mul,
    torch.add,
    Tensor.mul,
    Tensor.add,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__add__,
    Tensor.__radd__,
    *(place.rms_norm for place in (F, torch) if hasattr(place, "rms_norm")),
)
def _opening(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the function on opened temporaries directly. If a gradient is wanted, the dispatcher
    sees the encrypted tensors instead, so that autograd keeps these and no plaintext."""
    if "out" in kwargs or transformed():
        return default(function, args, kwargs)
    if torch.is_grad_enabled():
        for value in (*args, *kwargs.values()):
            if asks_gradient(value):
                return default(function, args, kwargs)
    wipe = False
    for value in (*args, *kwargs.values()):
        if type(value) is EncryptedTensor and asks_wiping(value):
            wipe = True
    args = tuple([opened(a) if type(a) is EncryptedTensor else a for a in args])
    if kwargs:
        kwargs = {k: opened(a) if type(a) is EncryptedTensor else a for k, a in kwargs.items()}
    result = function(*args, **kwargs)
    return pooled(result, (args, kwargs)) if wipe else result


@overrides(Tensor.tolist)
def _list(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return opened(args[0]).tolist()
