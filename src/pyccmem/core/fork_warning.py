# SPDX-License-Identifier: Apache-2.0
"""Warns before a fork of what the child cannot use, and marks in the child what must be opened
anew."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from .. import errors
from .store import disown_inherited, is_usable, origin_of, registered

__all__ = ["name_also"]

#: The most names in a warning. The search stops after one more, so that a fork with a million open
#: stores does not wait for it.
_NAMED = 3

_ADVICE = (
    "Keys do not follow a fork, so using them in the child will raise ForkError. Load in the "
    "worker: in gunicorn's post_fork hook or without --preload, in the lifespan of an ASGI "
    "application, in the initializer of a multiprocessing pool or with its 'spawn' method; or load "
    "from a sealed file with Key.from_file(), a Passphrase object that is kept, or a KeyProvider."
)


#: Functions of other modules that name what a child loses.
_others: list[Callable[[], list[str]]] = []


def name_also(names: Callable[[], list[str]]) -> None:
    """Adds a function to the warning, which lists the names it returns before the lost stores."""
    _others.append(names)


def _before() -> None:
    # subprocess runs these hooks too when it has a preexec_fn; its child then runs another program.
    if sys._getframe(1).f_globals.get("__name__") == "subprocess":
        return
    found = _lost()
    if not found:
        return
    named = ", ".join(found[:_NAMED])
    more = " and others" if len(found) > _NAMED else ""
    what = "is" if len(found) == 1 else "are"
    warnings.warn(
        f"This process forks while {named}{more} {what} open, which the child cannot open again. "
        f"{_ADVICE}",
        errors.ForkWarning,
        stacklevel=2,
    )


def _lost() -> list[str]:
    """Returns some of the open buffers that a child could not open again, as a message names
    them."""
    found = [one for names in _others for one in names()]
    obstacles: dict[int, str | None] = {}
    files = set()
    for buffer in registered():
        origin = origin_of(buffer)
        if origin is None:
            if is_usable(buffer):
                found.append(f"{buffer.name!a} (encrypted in memory)")
        elif not buffer.closed:
            if id(origin) not in obstacles:
                obstacles[id(origin)] = origin.obstacle()
            obstacle = obstacles[id(origin)]
            if obstacle is not None and id(origin) not in files:
                files.add(id(origin))
                found.append(f"{origin.description()} ({obstacle})")
        if len(found) > _NAMED:
            break
    return found


os.register_at_fork(before=_before, after_in_child=disown_inherited)
