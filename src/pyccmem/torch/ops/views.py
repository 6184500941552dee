# SPDX-License-Identifier: Apache-2.0
"""Views: add a step to the path, and open nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tensor import EncryptedTensor, alias, layout, path_of, viewed
from ..path import Step, traced
from ..registry import implements
from .common import open_all

__all__ = ["view"]

aten = torch.ops.aten


def _fixed(value: Any) -> Any:
    """Returns an argument for a path: lists become tuples, so that paths can be compared and
    hashed."""
    return tuple(_fixed(part) for part in value) if isinstance(value, (list, tuple)) else value


def view(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    base = args[0] if args else None
    if not isinstance(base, EncryptedTensor):
        return open_all(function, args, kwargs)
    step = Step(function, _fixed(args[1:]), tuple(sorted(_fixed(list(kwargs.items())))), None)
    form = layout(base)
    results = traced(form.shape, form.dtype, (*path_of(base), step))
    if isinstance(results, Tensor):
        return viewed(base, step, results)
    return [viewed(base, step._replace(part=at), seen) for at, seen in enumerate(results)]


@implements(aten.detach.default, aten.alias.default)
def _alias(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return alias(args[0])
