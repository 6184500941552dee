# SPDX-License-Identifier: Apache-2.0
"""Core dumps: by a debugger, and by the kernel when the process aborts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from ... import audit
from ..scratch import wipe
from .way import Denied, Subject, Untried, Way

__all__ = ["Abort", "Gcore"]

_TIMEOUT = 180.0  # seconds for one dump


#: What the script gcore -a runs (gdb's documentation, "Core File Generation"), but for the symbols
#: of libraries: a dump needs none, and those of PyTorch take longer than the dump.
_GDB = (
    *("gdb", "--nx", "--batch", "--readnever", "-iex", "set auto-solib-add off"),
    *("-ex", "set use-coredump-filter off", "-ex", "set dump-excluded-mappings on"),
)


class Gcore(Way):
    """gcore -a, which also writes what is marked MADV_DONTDUMP."""

    name, title = "gcore", "gcore -a"
    costly = True

    def reports(self, subject: Subject) -> list[audit.Report]:
        if shutil.which("gdb") is None:
            raise Untried("gdb, of which gcore is a part, is not installed")
        path = subject.directory / "gcore"
        process = subprocess.Popen(
            [*_GDB, "-ex", f"attach {subject.pid}", "-ex", f"gcore {path.name}", "-ex", "detach"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=subject.directory,
            start_new_session=True,
        )
        try:
            try:
                said, _ = process.communicate(timeout=_TIMEOUT)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if not path.exists():
                # gdb may end with status 0 without having attached.
                if "not permitted" in said or "ptrace" in said:
                    raise Denied("gdb may not attach to the process")
                raise Denied(f"gcore wrote no dump: {_last(said)}")
            return [_searched(path, subject)]
        except subprocess.TimeoutExpired:
            raise Untried(f"gcore was not done after {_TIMEOUT:.0f} s") from None
        finally:
            wipe(path)


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _searched(path: Path, subject: Subject) -> audit.Report:
    return audit.scan_file(path, subject.wanted.native, max_hits=0, wide=True)


class Abort(Way):
    """The kernel's core dump after SIGABRT, in the process's working directory."""

    name, title = "abort", "core by SIGABRT"
    ends = True

    def reports(self, subject: Subject) -> list[audit.Report]:
        if subject.target is None:
            raise Untried("it would end this process")
        pattern = core_pattern()
        if "/" in pattern or pattern.startswith(("|", "@")) or not pattern:
            raise Untried(f"cores do not go to the process's directory here, but to {pattern!r}")
        limits = _limits(subject.pid)
        before = set(subject.directory.iterdir())
        subject.target.signal(signal.SIGABRT)
        try:
            subject.target.wait_end(_TIMEOUT)
            cores = set(subject.directory.iterdir()) - before
            if not cores:
                raise Denied(f"the kernel wrote no core ({limits})")
            return [_searched(path, subject) for path in cores]
        except subprocess.TimeoutExpired:
            raise Untried(f"the core was not written after {_TIMEOUT:.0f} s") from None
        finally:
            for path in set(subject.directory.iterdir()) - before:
                wipe(path)


def core_pattern() -> str:
    """Where the kernel puts cores; "" when that is not to be read."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/core_pattern").read_text("utf-8", "replace").strip()
    return ""


def _limits(pid: int) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/limits").read_text("ascii").splitlines():
            if line.startswith("Max core file size"):
                return "RLIMIT_CORE " + line.split()[4]
    return "RLIMIT_CORE not known"
