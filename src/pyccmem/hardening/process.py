# SPDX-License-Identifier: Apache-2.0
"""What the system may do with this process: dump it, let others read it, hand its memory to
children. Each is set here, and read back here."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path
from typing import Any

from . import libc
from .part import Part

__all__ = [
    "core_dumps",
    "dontdump",
    "dumpable",
    "forbid",
    "fork",
    "ptrace",
]

_FILTER = Path("/proc/self/coredump_filter")
_PATTERN = Path("/proc/sys/kernel/core_pattern")
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
#: Bytes of an array that is large enough to be kept from a forked child (wiper.c).
_LARGE = 1 << 20
_GUARD = "call pyccmem.guard() without debuggable=True"


def _read(path: Path) -> str:
    """Returns the text of a file of the kernel; "" when it is not to be had."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _status(name: str) -> str:
    """Returns a line of /proc/self/status."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""


def _piped() -> bool:
    """Returns True when dumps go to a program, and when they may: the pattern cannot be read."""
    return _read(_PATTERN)[:1] in ("|", "@", "")


def forbid() -> list[str]:
    """Forbids dumps and readers. Returns a sentence for each thing that the system refused."""
    failed = []
    # Before the process ceases to be dumpable, which makes root the owner of its files in /proc.
    try:
        if _read(_FILTER) and int(_read(_FILTER), 16):
            _FILTER.write_text("0", encoding="utf-8")
    except OSError as error:
        why = error.strerror
        if error.errno == errno.EACCES:
            why = "the process has changed its user, or become closed, since; call guard() before"
        failed.append(f"/proc/self/coredump_filter cannot be written: {why}")
    # To a program behind a pipe the kernel hands dumps over whatever the limit is, except when it
    # is 1 (coredump(), fs/coredump.c); for a file, 1 byte is as little as none.
    limit = 1 if _piped() else 0
    try:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if hard == resource.RLIM_INFINITY or hard > limit:
            hard = limit
        resource.setrlimit(resource.RLIMIT_CORE, (min(limit, hard), hard))
    except (OSError, ValueError) as error:
        failed.append(f"RLIMIT_CORE cannot be lowered: {error}")
    refused = libc.set_dumpable(0)
    if refused:
        failed.append(f"PR_SET_DUMPABLE failed: {os.strerror(refused)}")
    refused = libc.no_ptracer()
    if refused not in (0, errno.EINVAL):  # EINVAL: Yama is not in this kernel
        failed.append(f"PR_SET_PTRACER failed: {os.strerror(refused)}")
    return failed


def core_dumps() -> Part:
    """Reads whether the kernel would write a dump of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    closed = libc.get_dumpable() == 0
    limited = 0 <= soft <= 1
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    detail = f"RLIMIT_CORE is {limit}"
    if _piped():
        detail += (
            ", and dumps go to a program" if _read(_PATTERN) else ", and a program may get dumps"
        )
        if soft == 0:
            detail += ", which gets them whatever the limit is"
            limited = False
    if closed:
        detail += "; not dumpable"
    if hard not in (0, 1):
        detail += "; the process may raise the limit again"
    active = closed or limited
    return Part("core-dumps", active, detail, "" if active else _GUARD)


def dumpable() -> Part:
    """Reads PR_GET_DUMPABLE."""
    found = libc.get_dumpable()
    if found == 0:
        return Part("dumpable", True, "not dumpable; until the next exec or change of user", "")
    text = {1: "dumpable", 2: "dumpable by root alone"}.get(found, "unknown")
    return Part("dumpable", False, text, _GUARD)


def ptrace() -> Part:
    """Reads whether another process of this user may read this one's memory."""
    tracer = _status("TracerPid")
    if not tracer:
        return Part("ptrace", False, "/proc/self/status cannot be read", "mount /proc")
    if tracer != "0":
        return Part("ptrace", False, f"process {tracer} traces this one", "end that process")
    scope = _read(_SCOPE)
    if libc.get_dumpable() == 0:
        detail = "closed to other processes but those with CAP_SYS_PTRACE, as root's are"
        return Part("ptrace", True, detail, "")
    if scope in ("2", "3"):
        return Part("ptrace", True, f"closed by kernel.yama.ptrace_scope {scope}", "")
    detail = "any process of this user may read this one's memory"
    if scope == "1":
        detail = "the processes that started this one may read its memory"
    return Part("ptrace", False, detail, _GUARD)


def fork() -> Part:
    """Looks whether large arrays and tensors are kept from a forked child."""
    numpy: Any = sys.modules.get("numpy")
    torch: Any = sys.modules.get("torch")
    wiped: list[str] = []
    left: list[str] = []
    if numpy is not None:
        array = numpy.empty(_LARGE, numpy.uint8)
        address = array.__array_interface__["data"][0]
        (wiped if _wiped_on_fork(address) else left).append("arrays")
    if torch is not None and hasattr(torch, "empty"):
        tensor = torch.empty(_LARGE, dtype=torch.uint8)
        (wiped if _wiped_on_fork(tensor.data_ptr()) else left).append("tensors")
    if wiped and not left:
        detail = f"large {' and '.join(wiped)} that are made now read as zeros in a forked child"
        return Part("fork", True, f"{detail}; it has a copy of all else", "")
    detail = "a forked child has a copy of all memory but pyccmem's own keys and records"
    if wiped:
        detail += f", and but large {' and '.join(wiped)}"
    remedy = "start children by 'spawn', or before secrets come; or `pyccmem run --fork wipe`"
    return Part("fork", False, detail, remedy)


def _wiped_on_fork(address: int) -> bool:
    """Returns True if the mapping in which a large block's middle lies is wiped on a fork."""
    middle, inside = address + _LARGE // 2, False
    for line in _read(Path("/proc/self/smaps")).splitlines():
        first = line.partition(" ")[0]
        start, dash, end = first.partition("-")
        if dash:
            inside = int(start, 16) <= middle < int(end, 16)
        elif inside and first == "VmFlags:":
            return " wf" in line
    return False


def dontdump() -> Part:
    """Reads which memory a dump would contain."""
    text = _read(_FILTER)
    if not text:
        return Part("dontdump", False, "/proc/self/coredump_filter cannot be read", "mount /proc")
    if int(text, 16) == 0:
        detail = "no dump has memory of this process (coredump_filter 0), nor one by gcore"
        return Part("dontdump", True, detail, "")
    detail = f"dumps have the memory that coredump_filter {text} names"
    return Part("dontdump", False, detail, _GUARD)
