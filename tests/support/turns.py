# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is, of the tests that pytest-xdist runs side by side."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Turns:
    """Lets the tests of several pytest-xdist workers run side by side, but one that is marked
    `alone` by itself. Two files are locked: a test that enters holds the gate until it has the
    room, shared or for itself, so one that waits for the room to be empty is not overtaken."""

    def __init__(self, folder: Path) -> None:
        self.gate = os.open(folder / "gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.room = os.open(folder / "room", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextlib.contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        fcntl.flock(self.gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(self.room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self.gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self.room, fcntl.LOCK_UN)
