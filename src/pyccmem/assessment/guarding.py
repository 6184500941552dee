# SPDX-License-Identifier: Apache-2.0
"""Lines of what pyccmem.guard() takes care of: of this process by the look of `hardening`, of
another one by what /proc shows of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from .. import hardening
from ..hardening.swap import areas
from .line import BAD, GOOD, UNKNOWN, WEAK, Finding
from .subject import FROM_INSIDE, Subject, Unseen

__all__ = ["OUTSIDE", "look_inside"]

#: Parts that look at a package's memory: without it there is none.
_PACKAGES = {"numpy-memory": ("numpy", "NumPy"), "torch-memory": ("torch", "PyTorch")}


def look_inside() -> dict[str, Finding]:
    """Returns what holds of guard()'s parts in this process, by name."""
    found = {}
    for part in hardening.parts():
        package, title = _PACKAGES.get(part.name, ("pyccmem", ""))
        if part.active:
            found[part.name] = Finding(GOOD, part.detail)
        elif package not in sys.modules:
            found[part.name] = Finding(GOOD, f"{title} is not loaded, so it has no memory")
        else:
            found[part.name] = Finding(BAD, part.detail, part.remedy)
    return found


# ---- another process -----------------------------------------------------------------------------

_RUN = "start it by `pyccmem run -- COMMAND`, or have it call pyccmem.guard()"


def _dumpable(subject: Subject) -> bool | None:
    """Returns what PR_GET_DUMPABLE says in the process, by the owner of its files in /proc: root,
    when it is not dumpable (proc(5)). None for a process of root's, whose files say nothing."""
    owner = os.stat(subject.path(f"proc/{subject.pid}/status")).st_uid
    user = int(subject.status("Uid").split()[1])
    return owner == user if user else None


def dumpable(subject: Subject) -> Finding:
    """Whether the process is dumpable."""
    found = _dumpable(subject)
    if found is None:
        raise Unseen("of a process of root's, /proc does not show it", FROM_INSIDE)
    return Finding(BAD, "dumpable", _RUN) if found else Finding(GOOD, "not dumpable")


def core_dumps(subject: Subject) -> Finding:
    """Whether the kernel would write a dump of the process."""
    if _dumpable(subject) is False:
        return Finding(GOOD, "not dumpable")
    line = next(
        (x for x in subject.own("limits").splitlines() if x.startswith("Max core file size")), ""
    )
    words = line.split()
    if len(words) < 6:
        raise Unseen("the process's limits do not tell")
    soft = words[4]
    piped = subject.read("proc/sys/kernel/core_pattern").startswith(("|", "@"))
    # The kernel hands a dump to a program whatever the limit is, except 1 (fs/coredump.c).
    if soft == "1" or (soft == "0" and not piped):
        return Finding(GOOD, f"RLIMIT_CORE is {soft}")
    where = "dumps go to a program" if piped else "dumps go to a file"
    return Finding(BAD, f"RLIMIT_CORE is {soft}, and {where}", _RUN)


def ptrace(subject: Subject) -> Finding:
    """Whether another process of the same user may read the process's memory."""
    tracer = subject.status("TracerPid")
    if tracer != "0":
        return Finding(BAD, f"process {tracer} traces it", "end that process")
    if _dumpable(subject) is False:
        return Finding(GOOD, "not dumpable: closed to all but those with CAP_SYS_PTRACE")
    if not subject.there("proc/sys/kernel/yama/ptrace_scope"):
        return Finding(BAD, "any process of its user may read its memory", _RUN)
    scope = subject.read("proc/sys/kernel/yama/ptrace_scope")
    if scope in ("2", "3"):
        return Finding(GOOD, f"closed by kernel.yama.ptrace_scope {scope}")
    if scope == "1":
        return Finding(WEAK, "the processes that started it may read its memory", _RUN)
    return Finding(BAD, "any process of its user may read its memory", _RUN)


def swap(subject: Subject) -> Finding:
    """Whether the process's memory can get to a disk in the clear."""
    used = subject.status("VmSwap")
    subject.read("proc/swaps")  # or there seems to be none
    found = areas(str(subject.root))
    text = "; ".join(f"{area.path}: {area.kind}, {area.why}" for area in found)
    if all(area.harmless for area in found):
        return Finding(GOOD, text or "this system has no swap")
    remedy = "encrypt swap (dm-crypt), switch it off, or set memory.swap.max=0"
    state = UNKNOWN if all(area.harmless or area.kind == "unknown" for area in found) else BAD
    return Finding(state, f"{text}; {used} of it swapped out", remedy)


def dontdump(subject: Subject) -> Finding:
    """Which memory a dump would contain."""
    text = subject.own("coredump_filter")
    try:
        named = int(text, 16)
    except ValueError:
        raise Unseen(f"coredump_filter is {text[:40]!r}") from None
    if named == 0:
        return Finding(GOOD, "no dump has memory of it (coredump_filter 0)")
    return Finding(BAD, f"dumps have the memory that coredump_filter {text} names", _RUN)


#: What can be seen of another process.
OUTSIDE: dict[str, Callable[[Subject], Finding]] = {
    "core-dumps": core_dumps,
    "dumpable": dumpable,
    "ptrace": ptrace,
    "swap": swap,
    "dontdump": dontdump,
}
