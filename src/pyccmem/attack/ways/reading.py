# SPDX-License-Identifier: Apache-2.0
"""Reads the memory of the process itself, and of a child that it forks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from ... import audit, errors
from ..job import FORK, REAP
from .way import Subject, Untried, Way

__all__ = ["Call", "Child", "Memory", "halted"]


@contextlib.contextmanager
def halted(pid: int) -> Iterator[None]:
    """Stops a process for the length of a `with` block, unless it was stopped before."""
    if _state(pid) in "Tt":
        yield
        return
    try:
        os.kill(pid, signal.SIGSTOP)
    except PermissionError:
        yield  # it goes on running, and what it moves may be missed
        return
    except ProcessLookupError:
        raise errors.NoProcessError(f"Process {pid} has ended.") from None
    try:
        until = time.monotonic() + 5
        while _state(pid) not in "TtZX" and time.monotonic() < until:
            time.sleep(0.0005)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


class Memory(Way):
    """/proc/PID/mem."""

    name, title = "mem", "/proc/PID/mem"
    way = "mem"

    def reports(self, subject: Subject) -> list[audit.Report]:
        with halted(subject.pid):
            return [self.scan(subject, subject.pid)]

    def scan(self, subject: Subject, pid: int) -> audit.Report:
        """Searches one process."""
        return audit.scan(
            pid,
            subject.wanted.native,
            max_hits=0,
            way=self.way,
            wide=True,
            files=subject.files,
        )


class Call(Memory):
    """process_vm_readv(2)."""

    name, title = "readv", "process_vm_readv"
    way = "readv"


class Child(Memory):
    """A child that the process forks, which has a copy of all that it does not keep from it."""

    name, title = "fork", "a forked child"

    def reports(self, subject: Subject) -> list[audit.Report]:
        if subject.target is None:
            raise Untried("nobody can ask this process to fork")
        pid = int(subject.target.do(FORK))
        try:
            return [self.scan(subject, pid)]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            subject.target.do(REAP, pid)
