# SPDX-License-Identifier: Apache-2.0
"""The audit hook: who wrapped or unwrapped a key, for which context, and when. Never the key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .. import errors

__all__ = ["Event", "Hook", "Told", "emit", "on_event", "watched"]


@dataclass(frozen=True)
class Event:
    """Something that was done with a key, or was tried."""

    #: "wrap" or "unwrap": one call of a provider. Of a key that is held: "withheld", when it may
    #: not be used any more, and "restored", when it may again.
    event: str
    #: The provider's name, and that of the key by which it wraps; None where that is not known.
    provider: str
    key_id: str | None
    #: What the key is for.
    context: dict[str, str]
    #: When it began, in seconds since 1970, and how long it took.
    when: float
    seconds: float
    #: The name of the exception's class, of the module that has it; None: it succeeded.
    error: str | None


Hook = Callable[[Event], Any]

#: By what tells two registrations of one function apart.
_hooks: dict[object, Hook] = {}


def on_event(hook: Hook) -> Callable[[], None]:
    """Calls `hook` with each Event of this process, in the thread that it happens in, and returns a
    function that ends that. An exception of the hook ends what it was told of: no key is handed out
    that could not be noted.

    Raises ArgumentTypeError for what cannot be called."""
    if not callable(hook):
        raise errors.ArgumentTypeError(
            f"A hook must be a function of one Event, not {type(hook).__name__}."
        )
    registration = object()
    _hooks[registration] = hook

    def end() -> None:
        _hooks.pop(registration, None)

    return end


def emit(event: Event, more: Hook | None = None) -> None:
    """Calls every hook, and `more`. Raises what they raise."""
    for hook in (*_hooks.values(), *(() if more is None else (more,))):
        hook(event)


@dataclass
class Told:
    """What watched() may not know before the call."""

    key_id: str | None


@contextmanager
def watched(
    event: str,
    provider: str,
    key_id: str | None,
    context: Mapping[str, str],
    more: Hook | None = None,
) -> Iterator[Told]:
    """Tells the hooks of a block when it ends, in whatever way. Raises what they raise."""
    when, begin = time.time(), time.monotonic()
    told = Told(key_id)
    error: str | None = None
    try:
        yield told
    except BaseException as problem:
        error = f"{type(problem).__module__}.{type(problem).__qualname__}"
        raise
    finally:
        seconds = time.monotonic() - begin
        emit(Event(event, provider, told.key_id, dict(context), when, seconds, error), more)
