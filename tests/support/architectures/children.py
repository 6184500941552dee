# SPDX-License-Identifier: Apache-2.0
"""A process for each family: forked from one that has imported what all need, with a limit of
time and of memory, so that what ends one ends no other."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: A file that a job makes when the plain model is there and has answered.
BUILT = "built"

Job = Callable[[Path], dict[str, Any]]


def in_child(job: Job, seconds: float, gibibytes: float) -> dict[str, Any]:
    """What the job returns, which gets a folder of its own. A child that is killed, runs out of
    time or memory, or ends by itself gives {"outcome": "crashed", "reason": ...}; "not built" as
    long as it has not made the file BUILT there, before anything is encrypted."""
    with tempfile.TemporaryDirectory(prefix="architectures-") as folder:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(job, Path(folder), writer, gibibytes)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text, late = _read(pipe.fileno(), time.monotonic() + seconds)
        if late:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        outcome = "crashed" if Path(folder, BUILT).exists() else "not built"
    if late:
        return {"outcome": outcome, "reason": f"not done after {seconds:.0f} seconds"}
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        code = os.waitstatus_to_exitcode(status)
        ended = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return {"outcome": outcome, "reason": f"the process ended {ended}"}
    if found["outcome"] == "ended":
        found["outcome"] = outcome
    return found


def _read(descriptor: int, end: float) -> tuple[bytes, bool]:
    """All that comes through a pipe, and whether it took too long."""
    text = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return text, True
        part = os.read(descriptor, 1 << 16)
        if not part:
            return text, False
        text += part


def _work(job: Job, folder: Path, writer: int, gibibytes: float) -> None:
    """Never returns."""
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        limit = int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        os.chdir(folder)
        with os.fdopen(writer, "wb") as pipe:
            try:
                found = job(folder)
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                found = {"outcome": "ended", "reason": f"{type(error).__name__}: {reason}"}
            pipe.write(json.dumps(found).encode())
        status = 0
    finally:
        os._exit(status)
