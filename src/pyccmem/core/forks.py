# SPDX-License-Identifier: Apache-2.0
"""What a child has after a fork: locks that it can use, and the way back to a sealed file.

Keys never follow a fork. If a buffer was opened from a file, by a key that can be fetched again,
the child opens it anew at its first use; see Origin. A warning before the fork names buffers for
which this is impossible; see fork_warning.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["Lock", "Origin", "opening"]

#: Held while something is opened anew. Reentrant, because a key provider may use a sealed file too.
_opening = threading.RLock()

#: Replaced in each child.
_process = object()


def opening() -> AbstractContextManager[Any]:
    """Returns the lock under which this process opens inherited files anew."""
    return _opening


class Lock:
    """A lock that is free in a forked child, whichever thread held it in the parent."""

    __slots__ = ("_lock", "_process")

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), _process

    def here(self) -> AbstractContextManager[Any]:
        """Returns this process's lock, for a `with` statement. It is a lock of C code: an interrupt
        cannot come between taking it and entering the block, after which nothing would release
        it."""
        if self._process is not _process:
            with _opening:
                if self._process is not _process:
                    self._lock, self._process = threading.Lock(), _process
        return self._lock


class Origin:
    """Where buffers came from, and how to open them once more. Never holds the bytes of a key."""

    __slots__ = ("__weakref__",)

    def description(self) -> str:
        """Returns what the origin is, for a message."""
        raise NotImplementedError

    def obstacle(self) -> str | None:
        """Returns why a child could not open the origin again, as the end of a sentence; None when
        it could, as far as this process can tell."""
        raise NotImplementedError

    def reopen(self) -> None:
        """Gives a new native store to each buffer of this origin that has none in this process.
        Raises ForkError, IntegrityError, OutOfMemoryError; a later call goes on with the buffers
        that are left."""
        raise NotImplementedError


def _in_child() -> None:
    """Replaces the lock: a thread that the child does not have may have held it at the fork."""
    global _opening, _process
    _opening, _process = threading.RLock(), object()


os.register_at_fork(after_in_child=_in_child)
