# SPDX-License-Identifier: Apache-2.0
"""Gradients: an encrypted tensor may ask for one, as parameters do unless told otherwise, and is
refused when one has been computed for it. Gradients of plain inputs pass through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tensor import EncryptedTensor, refuse_gradient
from ..registry import overrides
from .common import default

__all__ = ["asks_gradient"]


def asks_gradient(value: Any) -> bool:
    """Returns True for a tensor, plain or encrypted, for which a gradient is to be computed."""
    if not isinstance(value, Tensor):
        return False
    if type(value) is not EncryptedTensor:
        return value.requires_grad
    with torch._C.DisableTorchFunctionSubclass():
        return value.requires_grad


@overrides(Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def _requires_grad(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Lets torch set the flag, so that outputs belong to a graph as those of plain parameters do,
    and a backward pass that reaches the tensor is an error, not a gradient that is missing."""
    result = default(function, args, kwargs)
    if asks_gradient(args[0]):
        refuse_gradient(args[0])
    return result
