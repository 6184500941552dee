# SPDX-License-Identifier: Apache-2.0
"""What a fork leaves to the child: locks that it can use, and the way back to a sealed file.

Keys never follow a fork. What was opened from a file, by a key that can be asked for once more, is
opened anew in the child when it is first used; see Origin. What cannot be is named in a warning
before the fork; see fork_warning.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["Lock", "Origin", "opening"]

#: Held while something is opened anew. Reentrant, since a key provider may use a sealed file, too.
_opening = threading.RLock()

#: Replaced in each child.
_process = object()


def opening() -> AbstractContextManager[Any]:
    """Returns the lock under which this process opens anew what it inherited."""
    return _opening


class Lock:
    """A lock that is free in a forked child, whichever thread held it in the parent."""

    __slots__ = ("_lock", "_process")

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), _process

    def here(self) -> AbstractContextManager[Any]:
        """This process's lock, for a `with` statement. It is one of C, which takes it in a step
        that no interrupt can come into: nobody would give it back then."""
        if self._process is not _process:
            with _opening:
                if self._process is not _process:
                    self._lock, self._process = threading.Lock(), _process
        return self._lock


class Origin:
    """Where buffers come from that can be opened once more, and how: never the key's bytes."""

    __slots__ = ("__weakref__",)

    def description(self) -> str:
        """Returns what it is, for a message."""
        raise NotImplementedError

    def obstacle(self) -> str | None:
        """Returns why a child could not open it again, as the end of a sentence; None when it
        could, as far as this process can tell."""
        raise NotImplementedError

    def reopen(self) -> None:
        """Gives each buffer of this origin that has no store in this process a new one. Raises
        ForkError, IntegrityError, OutOfMemoryError; those that have none yet can be tried again."""
        raise NotImplementedError


def _in_child() -> None:
    """A fork may find a lock held by a thread that the child does not have."""
    global _opening, _process
    _opening, _process = threading.RLock(), object()


os.register_at_fork(after_in_child=_in_child)
