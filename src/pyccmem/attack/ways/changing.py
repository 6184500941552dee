# SPDX-License-Identifier: Apache-2.0
"""Changes memory from outside: puts pages back from earlier, flips bits."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

from ..note import CHANGED, NOTICED, READ, SAME, WHERE, WRITE
from ..target import Target

__all__ = ["Change", "changes"]

_PAGE = 4096
_REPLAYS, _FLIPS = 8, 64


@dataclass(frozen=True)
class Change:
    """What reading the note gave after so many changes from outside."""

    way: str
    process: str
    tries: int = 0
    noticed: int = 0  # by an error
    passed: int = 0  # other content than was written came back
    nothing: int = 0  # as written
    note: str = ""  # why it was not tried


def changes(target: Target, name: str) -> list[Change]:
    """Tries both on the server's note, at whose address the attacker is taken to know."""
    try:
        with open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as memory:
            return [
                _tried("replay", name, target, memory.fileno(), _REPLAYS),
                _tried("flips", name, target, memory.fileno(), _FLIPS),
            ]
    except OSError as error:
        reason = f"its memory cannot be written: {error.strerror}"
        return [Change(way, name, note=reason) for way in ("replay", "flips")]


def _tried(way: str, name: str, target: Target, memory: int, tries: int) -> Change:
    address, nbytes = target.note(WHERE)
    counts = {NOTICED: 0, CHANGED: 0, SAME: 0}
    drawn = random.Random(way)
    for number in range(tries):
        if way == "replay":
            page = address + number % (nbytes // _PAGE) * _PAGE
            old = os.pread(memory, _PAGE, page)
            target.note(WRITE)
            now = os.pread(memory, _PAGE, page)
            os.pwrite(memory, old, page)
        else:
            page = address + drawn.randrange(nbytes)
            now = os.pread(memory, 1, page)
            os.pwrite(memory, bytes([now[0] ^ 1 << drawn.randrange(8)]), page)
        counts[target.note(READ)] += 1
        os.pwrite(memory, now, page)
    return Change(way, name, tries, counts[NOTICED], counts[CHANGED], counts[SAME])
