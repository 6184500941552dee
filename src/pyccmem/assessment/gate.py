# SPDX-License-Identifier: Apache-2.0
"""posture(): looks at what protects a process now, and insists on it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .. import errors
from ..binding.arguments import integer
from .levels import requirements
from .report import Posture
from .subject import Subject
from .table import look

__all__ = ["posture"]


def posture(require: str | Iterable[str] = (), *, pid: int | None = None) -> Posture:
    """Looks at what protects this process now, or process `pid`, of which less is to be seen.
    Returns a Posture, whose lines say what was found, why it matters, and how to have it better.

    `require` names levels ("minimal", "no-dumps", "inputs", "strict", "confidential"), whose lines
    must be as they ask, and lines, which must be good ("swap") or at least weak ("swap:weak"). What
    cannot be seen is never enough. Changes nothing and imports nothing; what the program loads
    later is not seen yet.

    Raises PostureError when a line is not as required, NoProcessError, ArgumentError,
    ArgumentTypeError."""
    wanted = requirements(require)  # refuses names before the look, which takes longer
    found = _looked_at(pid)
    failed = found.unmet(wanted)
    if failed:
        told = " ".join(
            f"{line.name} is {line.state} ({line.seen}): {line.remedy}." for line in failed
        )
        raise errors.PostureError(
            f"Process {found.pid} is not protected as required. {told}", failed, found
        )
    return found


def _looked_at(pid: int | None) -> Posture:
    if pid is None:
        return Posture(os.getpid(), look(Subject()))
    pid = integer("pid", pid)
    if pid < 1:
        raise errors.ArgumentError(f"pid is {pid}; it must be the number of a process.")
    _check_alive(pid)
    found = Posture(pid, look(Subject(pid)))
    _check_alive(pid)  # or the lines are of one that has ended, or of two
    return found


def _check_alive(pid: int) -> None:
    """Raises NoProcessError."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        raise errors.NoProcessError(f"There is no process {pid}.") from None
