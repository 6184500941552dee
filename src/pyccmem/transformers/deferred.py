# SPDX-License-Identifier: Apache-2.0
"""Tensors that are not there until somebody computes with them.

A Deferred has a shape and a dtype, and no memory. What knows it takes what it stands for; every
other operation of torch gets its values, which the subclass makes at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import errors

__all__ = ["Deferred", "uncompiled"]


_Function = TypeVar("_Function", bound=Callable[..., Any])


def uncompiled(function: _Function) -> _Function:
    """Marks what torch.compile calls and does not look into: it changes a cache, which no graph
    holds, or asks how long that is now."""
    marked: _Function = torch.compiler.disable(  # type: ignore[no-untyped-call]
        function,
        reason="Encrypted caches are called by a compiled model, and not compiled; leave "
        "fullgraph=True out.",
    )
    return marked


_CPU = torch.device("cpu")


class Deferred(Tensor):
    """Base of what update() and the mask function return. Subclasses say what the values are."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def standing_for(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """One without contents; the subclass adds what it stands for."""
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=_CPU)

    def plain(self) -> Tensor:
        """The plain tensor, of the same shape and dtype."""
        raise NotImplementedError

    def noun(self) -> str:
        """What it is, in an error's words."""
        raise NotImplementedError

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        _refuse_writes(func, args, kwargs or {})
        args, kwargs = tree_map_only(Deferred, _plain, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"<{self.noun()}, {tuple(self.shape)}, {self.dtype}>"

    def _refuse_copy(self, *_: Any) -> NoReturn:
        raise errors.NotPicklableError(
            f"{self.noun().capitalize()} cannot be pickled or copied: it would have to be opened "
            f"first. Keep the cache itself in this process; cache.fork() makes another one."
        )

    __reduce__ = _refuse_copy
    __reduce_ex__ = _refuse_copy
    __deepcopy__ = _refuse_copy


def _plain(deferred: Deferred) -> Tensor:
    """What the subclass makes."""
    return deferred.plain()


def _refuse_writes(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raises ArgumentError: what is written to values made for one operation would be lost."""
    schema = func._schema
    if not schema.is_mutable:
        return
    for place, argument in enumerate(schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        alias = argument.alias_info
        if alias is not None and alias.is_write and isinstance(value, Deferred):
            raise errors.ArgumentError(
                f"{func} writes to {value.noun()}, which is read only: new keys and values go "
                f"through update(). Use clone() where a copy of it may be plain."
            )
