# SPDX-License-Identifier: Apache-2.0
"""All lines: their names, why each matters, and who looks."""

from __future__ import annotations

from collections.abc import Callable

from . import guarding, library, machine, models
from .line import UNKNOWN, Finding, Line
from .subject import FROM_INSIDE, Subject, Unseen

__all__ = ["NAMES", "look"]

_Look = Callable[[Subject], Finding]

#: Of pyccmem in the process: others cannot see it.
_LIBRARY: dict[str, tuple[_Look, str]] = {
    "tier": (library.tier, "the kernels decide for how long a call holds plaintext"),
    "self-tests": (
        library.self_tests,
        "a processor that computes wrongly encrypts wrongly",
    ),
    "secret-memory": (
        library.secret_memory,
        "whoever reads a key opens all that was sealed under it",
    ),
    "integrity": (library.integrity, "data that others changed must not be computed with"),
    "plaintext-budget": (
        library.plaintext_budget,
        "what is open at the same time can be read at the same time",
    ),
    "models": (models.models, "a plain copy of a weight undoes its encryption"),
    "caches": (models.caches, "keys and values tell what users wrote"),
}

#: Of what pyccmem.guard() takes care of.
_GUARD: dict[str, str] = {
    "freed-memory": "freed memory keeps prompts and results until it is used again",
    "small-blocks": "small freed blocks keep token ids and pieces of text",
    "python-objects": "dropped str and bytes keep prompts and answers",
    "numpy-memory": "dropped arrays keep inputs and results",
    "torch-memory": "dropped tensors keep hidden states, keys and values",
    "core-dumps": "a dump writes all that is open to a disk, or hands it to a program",
    "dumpable": "other processes of this user may open /proc/PID/mem",
    "ptrace": "a debugger of this user reads all that is open, and keys at level mlock",
    "swap": "what was swapped out stays on the disk",
    "fork": "a child inherits all plaintext, and gives it to what it runs",
    "dontdump": "a dump that is made all the same should have no memory in it",
}

#: Of the system.
_MACHINE: dict[str, tuple[_Look, str]] = {
    "memory-encryption": (
        machine.memory_encryption,
        "the host of a virtual machine, and who has the memory chips, read all memory but that",
    ),
    "hibernation": (machine.hibernation, "its image holds all memory, locked memory too"),
    "lockdown": (machine.lockdown, "root reads all memory through the kernel"),
    "kernel-wiping": (
        machine.kernel_wiping,
        "pages of a process that has ended keep what they held, for a host or a snapshot",
    ),
    "huge-pages": (
        machine.huge_pages,
        "the kernel copies memory to build huge pages, and leaves the old pages as they were",
    ),
    "page-merging": (
        machine.page_merging,
        "whether a page is merged tells others whether it equals one of theirs",
    ),
    "userfaultfd": (
        machine.userfaultfd,
        "holding the kernel at a fault makes errors in it easier to exploit",
    ),
}

#: The names of all lines, in their order.
NAMES: tuple[str, ...] = (*_LIBRARY, *_GUARD, *_MACHINE)


def look(subject: Subject) -> tuple[Line, ...]:
    """Returns all lines, as they are now."""
    parts = _parts(subject)
    lines = []
    for name in NAMES:
        if name in _GUARD:
            why, found = _GUARD[name], parts[name]
        else:
            own, why = (_LIBRARY | _MACHINE)[name]
            hidden = name in _LIBRARY and not subject.inside
            found = _HIDDEN if hidden else _looked(own, subject)
        lines.append(Line(name, found.state, found.seen, why, found.remedy))
    return tuple(lines)


def _parts(subject: Subject) -> dict[str, Finding]:
    """Returns what holds of guard()'s parts, for every name."""
    if not subject.inside:
        outside = guarding.OUTSIDE
        return {
            name: _looked(outside[name], subject) if name in outside else _HIDDEN for name in _GUARD
        }
    try:
        found = guarding.look_inside()
    except Exception as error:
        return dict.fromkeys(_GUARD, _failed(error))
    missing = Finding(UNKNOWN, "nothing was found out", "report this to the authors of pyccmem")
    return dict.fromkeys(_GUARD, missing) | found


_HIDDEN = Finding(UNKNOWN, "the process itself alone can tell", FROM_INSIDE)


def _looked(own: _Look, subject: Subject) -> Finding:
    """Returns what a look found. Whatever keeps it from its end, the state is unknown: a program
    that asks for protection must not be told of a failure in place of an answer."""
    try:
        return own(subject)
    except Unseen as reason:
        return Finding(UNKNOWN, str(reason), reason.remedy)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> Finding:
    text = " ".join(str(error).split())
    return Finding(
        UNKNOWN, f"the look failed: {type(error).__name__}: {text[:200]}", "mend what is named"
    )
