# SPDX-License-Identifier: Apache-2.0
"""Takes rows of an encrypted table by their numbers, and opens only these."""

from __future__ import annotations

from typing import Any

import torch

from .._tensor import EncryptedTensor, ciphertext, layout, path_of, stored_of
from ..path import window
from ..registry import implements
from .common import open_all, plain

__all__: list[str] = []

aten = torch.ops.aten


@implements(aten.embedding.default)
def _embedding(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _take_rows(function, args, kwargs, args[0], args[1])


@implements(aten.index_select.default)
def _index_select(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) != 3 or args[1] not in (0, -args[0].dim()) or args[2].dim() != 1:
        return open_all(function, args, kwargs)
    return _take_rows(function, args, kwargs, args[0], args[2])


@implements(aten.index.Tensor)
def _index(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) != 2 or len(args[1]) != 1 or args[1][0] is None:
        return open_all(function, args, kwargs)
    return _take_rows(function, args, kwargs, args[0], args[1][0], wrap=True)


def _take_rows(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    table: Any,
    numbers: Any,
    *,
    wrap: bool = False,
) -> Any:
    """Opens only the rows that are asked for."""
    numbers = plain(numbers)
    if not isinstance(table, EncryptedTensor) or numbers.dtype not in (torch.int64, torch.int32):
        return open_all(function, args, kwargs)
    stored = stored_of(table)
    if stored is None:
        form = layout(table)
        if path_of(table) or len(form.shape) != 2 or wrap:
            return open_all(function, args, kwargs)
        return torch.ops.pyccmem.embedding(
            numbers, ciphertext(table), form.offset, list(form.shape), form.dtype
        )
    core = stored.core
    part = window(core.shape, path_of(table))
    if part.path or not part.shape:
        return open_all(function, args, kwargs)
    found = stored.rows_at(part.first, part.shape, numbers, wrap=wrap)
    return open_all(function, args, kwargs) if found is None else found
