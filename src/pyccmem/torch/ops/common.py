# SPDX-License-Identifier: Apache-2.0
"""What the operations share: they open tensors for which they have no other way."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from .._blas import BLAS
from .._results import pooled
from .._tensor import EncryptedTensor, asks_wiping, opened

__all__ = ["default", "open_all", "plain", "transformed"]


def plain(value: Any) -> Any:
    return opened(value) if isinstance(value, EncryptedTensor) else value


def open_all(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the function on opened temporaries, which are wiped when nothing refers to them."""
    wipe = False

    def open_one(value: Any) -> Any:
        nonlocal wipe
        if not isinstance(value, EncryptedTensor):
            return value
        wipe = wipe or asks_wiping(value)
        return opened(value)

    args, kwargs = tree_map(open_one, (args, kwargs))
    if torch.compiler.is_compiling():
        return function(*args, **kwargs)
    with BLAS.unkept():
        result = function(*args, **kwargs)
        return pooled(result, (args, kwargs)) if wipe else result


_dual_level = torch.autograd.forward_ad


def transformed() -> bool:
    """Returns True while something records or transforms operations and would miss native calls:
    jit.trace, forward-mode gradients, torch.func, a mode of the dispatcher."""
    return (
        torch._C._get_tracing_state() is not None
        or _dual_level._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def default(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **kwargs)
