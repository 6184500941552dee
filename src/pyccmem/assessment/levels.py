# SPDX-License-Identifier: Apache-2.0
"""Levels of protection: names for sets of lines that must be good; and what `require` asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .. import errors
from .line import GOOD, WEAK, Line
from .table import NAMES

__all__ = ["LEVELS", "Requirement", "requirements"]

_MINIMAL = ("self-tests", "integrity", "secret-memory:weak")
_NO_DUMPS = (*_MINIMAL, "core-dumps", "dumpable", "ptrace", "swap", "hibernation")
_INPUTS = (
    *_NO_DUMPS,
    "freed-memory",
    "small-blocks",
    "python-objects",
    "numpy-memory",
    "torch-memory",
    "caches",
)
_STRICT = (
    *_INPUTS,
    "secret-memory",
    "models",
    "plaintext-budget",
    "fork",
    "dontdump",
    "huge-pages",
    "page-merging",
    "userfaultfd",
)

#: What each level asks for, weakest first; each contains those before it. `NAME:weak` is satisfied
#: by "weak" as well.
LEVELS: dict[str, tuple[str, ...]] = {
    "minimal": _MINIMAL,
    "no-dumps": _NO_DUMPS,
    "inputs": _INPUTS,
    "strict": _STRICT,
    "confidential": (*_STRICT, "memory-encryption", "lockdown", "kernel-wiping"),
}


class Requirement(NamedTuple):
    """What one line must be."""

    name: str
    states: tuple[str, ...]

    def met(self, line: Line) -> bool:
        """Returns True when the line has such a state."""
        return line.state in self.states


def _requirement(text: str) -> Requirement:
    name, colon, _ = text.partition(":")
    return Requirement(name, (GOOD, WEAK) if colon else (GOOD,))


def requirements(require: str | Iterable[str]) -> tuple[Requirement, ...]:
    """Returns what names of levels and of lines ask for, without repetitions. Raises ArgumentError,
    ArgumentTypeError."""
    found: dict[Requirement, None] = {}
    for name in _names(require):
        if name in LEVELS:
            found.update(dict.fromkeys(map(_requirement, LEVELS[name])))
        elif name.removesuffix(":weak") in NAMES:
            found[_requirement(name)] = None
        else:
            raise errors.ArgumentError(
                f"require names {name!a}, which is no level and no line. Levels: "
                f"{', '.join(LEVELS)}. Lines, also with ':weak' behind: {', '.join(NAMES)}."
            )
    return tuple(found)


def _names(require: Any) -> list[str]:
    if isinstance(require, str):
        return [require]
    try:
        names = list(require)
    except TypeError:
        raise errors.ArgumentTypeError(
            f"require must be names of levels or lines, not {type(require).__name__}."
        ) from None
    for name in names:
        if not isinstance(name, str):
            raise errors.ArgumentTypeError(
                f"require must contain names as text, not {type(name).__name__}."
            )
    return names
