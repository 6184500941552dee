# SPDX-License-Identifier: Apache-2.0
"""The handlers for EncryptedTensor by what torch asks for, which ops/ and _serialize register here.
Imports nothing of this package, so that the tensor's class can look up handlers here, and the
handlers can import the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "DISPATCH",
    "FUNCTIONS",
    "Handler",
    "handler_of",
    "implements",
    "overrides",
    "plans",
    "reduced",
    "reduces",
]

#: A handler, called as handler(function, args, kwargs).
Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_Any = TypeVar("_Any", bound=Callable[..., Any])

#: The handlers of operations of torch's dispatcher.
DISPATCH: dict[Any, Handler] = {}

#: The handlers of functions of torch's Python interface that are not left to its dispatcher.
FUNCTIONS: dict[Any, Handler] = {}

_planners: list[Callable[[Any], Handler]] = []
_reducers: list[Callable[[Any], tuple[Any, ...]]] = []


def implements(*operations: Any) -> Callable[[_Any], _Any]:
    """Decorates the handler of operations of the dispatcher."""

    def register(handler: _Any) -> _Any:
        DISPATCH.update(dict.fromkeys(operations, handler))
        return handler

    return register


def overrides(*functions: Any) -> Callable[[_Any], _Any]:
    """Decorates the handler of functions of torch's Python interface."""

    def register(handler: _Any) -> _Any:
        FUNCTIONS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def plans(planner: Callable[[Any], Handler]) -> Callable[[Any], Handler]:
    """Decorates the function that chooses a handler for an operation that has none."""
    _planners[:] = [planner]
    return planner


def handler_of(operation: Any) -> Handler:
    """Returns the handler of an operation of the dispatcher."""
    handler = DISPATCH.get(operation)
    if handler is None:
        handler = DISPATCH[operation] = _planners[0](operation)
    return handler


def reduces(reducer: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
    """Decorates the function that says what pickle writes for an EncryptedTensor."""
    _reducers[:] = [reducer]
    return reducer


def reduced(tensor: Any) -> tuple[Any, ...]:
    """Returns what pickle writes for an EncryptedTensor."""
    return _reducers[0](tensor)
