# SPDX-License-Identifier: Apache-2.0
"""Takes the measures of guard(): overwrites what is freed, and closes the process to dumps, readers
and swap."""

from __future__ import annotations

from .. import errors
from . import allocator, libc, numpy_memory, process
from . import swap as swapping
from .part import Part
from .parts import parts
from .settings import Settings

__all__ = ["Guard", "guard", "table"]

#: Parts that a program need not have: it may use neither package.
_OF_PACKAGES = {"numpy-memory": "numpy", "torch-memory": "torch"}

#: NumPy keeps blocks below 1,024 bytes for itself, and glibc's threads those up to 1,032.
_NUMPY_KEEPS, _THREADS_KEEP = 1024, 2048


class Guard:
    """What guard() brought about: `parts` looks anew each time, `str()` is a table of them."""

    def __init__(self, settings: Settings, failures: tuple[str, ...]) -> None:
        self.settings = settings
        self.failures = failures  #: a sentence for each thing that was asked for and refused

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts as they are now."""
        return parts()

    def lacking(self) -> tuple[Part, ...]:
        """Returns the parts that were asked for and do not hold."""
        left_out: set[str] = set()
        if self.settings.debuggable:
            left_out |= {"core-dumps", "dumpable", "ptrace", "dontdump"}
        if self.settings.swap == "ignore":
            left_out.add("swap")
        if self.settings.fork == "keep":
            left_out.add("fork")
        return tuple(
            part
            for part in self.parts
            if not part.active and part.name not in left_out and not _is_absent(part)
        )

    def __repr__(self) -> str:
        found = self.parts
        lacking = [part.name for part in found if not part.active]
        text = f"<pyccmem.hardening.Guard: {len(found) - len(lacking)} of {len(found)} parts active"
        return f"{text}; not {', '.join(lacking)}>" if lacking else f"{text}>"

    def __str__(self) -> str:
        return "\n".join(table(self.parts, self.failures))


def _is_absent(part: Part) -> bool:
    return part.detail == f"{_OF_PACKAGES.get(part.name)} is not imported"


def table(found: tuple[Part, ...], failures: tuple[str, ...] = ()) -> list[str]:
    """Returns the lines of a table of parts."""
    width = max(len(part.name) for part in found)
    lines = []
    for part in found:
        state = "active" if part.active else "-"
        lines.append(f"{part.name:<{width}}  {state:<6}  {part.detail}")
        if part.remedy:
            lines.append(f"{'':<{width}}  {'':<6}  > {part.remedy}")
    return lines + [f"refused: {failure}" for failure in failures]


def guard(
    *, debuggable: bool = False, swap: str = "check", fork: str = "keep", strict: bool = False
) -> Guard:
    """Lets this process leave less behind, from now on: what is freed is overwritten; it is not
    dumped, and its memory is closed to other processes of this user. Returns a Guard, which says
    what holds.

    `debuggable`: leaves dumps and debuggers alone, for development. `swap`: "check" looks whether
    memory can get to a disk in the clear, "lock" locks all memory (which a small RLIMIT_MEMLOCK
    does not allow), "ignore" does neither. `fork`: "keep" leaves a forked child its copy of
    everything; with "wipe" arrays of 128 KiB and more that are made from now on read as zeros in
    it, under `pyccmem run` tensors too. `strict`: raises GuardError if a part does not hold that
    was asked for.

    Call it first, before secrets come into memory; `pyccmem run -- COMMAND` does more, because some
    of it must be set before the program starts. Called again, it does what the new options ask in
    addition; what was closed stays closed.

    Raises GuardError, ArgumentError, ArgumentTypeError."""
    settings = Settings(bool(debuggable), swap, fork, bool(strict))
    made = Guard(settings, tuple(_take(settings)))
    if strict:
        _insist(made)
    return made


def _take(settings: Settings) -> list[str]:
    """Takes the measures. Returns a sentence for each that was refused."""
    failures = []
    below = numpy_memory.EVERY_SIZE
    if allocator.wiper():
        below = _NUMPY_KEEPS
    elif allocator.perturb():
        below = _THREADS_KEEP
        libc.trim()  # what was freed before is overwritten no more, but whole pages of it can go
    refused = numpy_memory.wipe_arrays(below)
    if refused:
        failures.append(f"NumPy's freed memory: {refused}")
    if settings.fork == "wipe" and not numpy_memory.wipe_on_fork():
        failures.append("fork='wipe': pyccmem was built without its library wiper.c")
    if settings.swap == "lock":
        refused = swapping.lock()
        if refused:
            failures.append(f"swap='lock': {refused}")
    if not settings.debuggable:
        failures += process.forbid()
    return failures


def _insist(made: Guard) -> None:
    lacking = made.lacking()
    if lacking or made.failures:
        said = [f"{part.name}: {part.detail}" for part in lacking]
        raise errors.GuardError(
            f"guard(strict=True) cannot have all that was asked for: "
            f"{'; '.join([*said, *made.failures])}. print(pyccmem.guard()) says what helps."
        )
