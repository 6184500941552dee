# SPDX-License-Identifier: Apache-2.0
"""Takes the measures of guard(): overwrites what is freed, and closes the process to dumps, readers
and swap."""

from __future__ import annotations

from typing import Any

from .. import errors
from . import allocator, libc, process, swap
from .parts import Part, parts

__all__ = ["Guard", "guard"]

SWAP = ("check", "lock", "ignore")
FORK = ("keep", "wipe")


class Guard:
    """What guard() brought about: `parts` looks anew each time, `str()` is a table of them."""

    def __init__(self, options: dict[str, Any], failures: tuple[str, ...]) -> None:
        self.options = options
        self.failures = failures  #: a sentence for each call that the system refused

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts as they are now."""
        return parts()

    def __repr__(self) -> str:
        found = self.parts
        lacking = [part.name for part in found if not part.active]
        text = f"<pyccmem.Guard: {len(found) - len(lacking)} of {len(found)} parts active"
        return f"{text}; not {', '.join(lacking)}>" if lacking else f"{text}>"

    def __str__(self) -> str:
        return "\n".join(table(self.parts, self.failures))


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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise errors.ArgumentTypeError(f"{name} must be text, not {type(value).__name__}.")
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise errors.ArgumentError(f"{name} is {value!r}; use one of {names}.")
    return value


def guard(
    *, debuggable: bool = False, swap: str = "check", fork: str = "keep", strict: bool = False
) -> Guard:
    """Lets this process leave less behind, from now on: what is freed is overwritten; it is not
    dumped, and its memory is closed to other processes of this user. Returns a Guard, which says
    what holds.

    `debuggable`: leaves dumps and debuggers alone, for development. `swap`: "check" looks whether
    memory can get to a disk in the clear, "lock" locks all memory (which a small RLIMIT_MEMLOCK
    does not allow), "ignore" does neither. `fork`: "keep" leaves a forked child its copy of
    everything. `strict`: raises GuardError if a part does not hold that was asked for.

    Call it first, before secrets come into memory; `pyccmem run -- COMMAND` does more, because some
    of it must be set before the program starts. Called again, it does what the new options ask in
    addition; what was closed stays closed.

    Raises GuardError, ArgumentError, ArgumentTypeError."""
    _one_of("swap", swap, SWAP)
    _one_of("fork", fork, FORK)
    failures = _take(debuggable=bool(debuggable), swap_option=swap)
    made = Guard({"debuggable": bool(debuggable), "swap": swap, "fork": fork}, tuple(failures))
    if strict:
        _insist(made)
    return made


def _take(*, debuggable: bool, swap_option: str) -> list[str]:
    failures = []
    if not allocator.wiper() and allocator.perturb():
        libc.trim()
    if swap_option == "lock":
        refused = swap.lock()
        if refused:
            failures.append(refused)
    if not debuggable:
        failures += process.forbid()
    return failures


def _insist(made: Guard) -> None:
    unasked = set()
    if made.options["debuggable"]:
        unasked |= {"core-dumps", "dumpable", "ptrace", "dontdump"}
    if made.options["swap"] == "ignore":
        unasked.add("swap")
    if made.options["fork"] == "keep":
        unasked.add("fork")
    lacking = [part for part in made.parts if not part.active and part.name not in unasked]
    if lacking or made.failures:
        said = [f"{part.name}: {part.detail}" for part in lacking]
        raise errors.GuardError(
            "guard(strict=True) cannot have all that was asked for. "
            + "; ".join([*said, *made.failures])
            + "."
        )
