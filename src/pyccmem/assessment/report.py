# SPDX-License-Identifier: Apache-2.0
"""Posture: what a look at a process found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from .. import errors
from .levels import LEVELS, Requirement, requirements
from .line import GOOD, STATES, Line

__all__ = ["Posture"]


class Posture:
    """What protected a process when it was looked at: a sequence of lines, `str()` is a table.
    Get one by pyccmem.posture()."""

    __slots__ = ("_lines", "_pid")

    def __init__(self, pid: int, lines: Iterable[Line]) -> None:
        self._pid, self._lines = pid, tuple(lines)

    @property
    def pid(self) -> int:
        """The process."""
        return self._pid

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, name: str) -> Line:
        """Returns the line of that name. Raises ArgumentError."""
        for line in self._lines:
            if line.name == name:
                return line
        names = ", ".join(line.name for line in self._lines)
        raise errors.ArgumentError(f"There is no line {name!a}; there are {names}.")

    @property
    def level(self) -> str:
        """The highest level whose lines are all as it asks; "none" if not even the lowest is
        reached."""
        reached = "none"
        for name in LEVELS:
            if self.failed(name):
                break
            reached = name
        return reached

    def failed(self, require: str | Iterable[str]) -> tuple[Line, ...]:
        """Returns the lines that are not as levels or lines ask, by name. Raises ArgumentError,
        ArgumentTypeError."""
        return self.unmet(requirements(require))

    def unmet(self, wanted: Iterable[Requirement]) -> tuple[Line, ...]:
        """Returns the lines that are not as `wanted`, each once."""
        lines = {one.name: self[one.name] for one in wanted if not one.met(self[one.name])}
        return tuple(lines.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns `pid`, `level`, `levels` (for each whether it is reached) and `lines`, a dict for
        each."""
        return {
            "pid": self.pid,
            "level": self.level,
            "levels": {name: not self.failed(name) for name in LEVELS},
            "lines": [line.to_dict() for line in self],
        }

    def __str__(self) -> str:
        width = max(len(line.name) for line in self)
        text = [f"process {self.pid}, level {self.level}"]
        for line in self:
            text.append(f"{line.name:<{width}}  {line.state:<7}  {line.seen}")
            if line.state != GOOD:
                text.append(f"{'':<{width}}  {'':<7}  > {line.why}: {line.remedy}")
        return "\n".join(text)

    def __repr__(self) -> str:
        counts = Counter(line.state for line in self)
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        return f"<pyccmem.Posture of process {self.pid}: level {self.level}; {told}>"
