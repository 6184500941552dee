# SPDX-License-Identifier: Apache-2.0
"""Judges what was seen: whether the run is void, and what was found that should not be there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .job import PLAIN
from .look import BLIND, READ, REFUSED, UNTRIED, Look
from .rules import Rules
from .trial import DURING, Result
from .ways.way import Way

__all__ = ["Outcome", "moments"]

#: Increased when a field of the JSON document changes its meaning.
SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """All results."""

    title: str
    settings: dict[str, Any]  # for the document
    ways: Sequence[Way]
    result: Result
    clean_means: str  # said when nothing was found that should not be there
    rules: Rules = field(default_factory=Rules)

    @property
    def attacked(self) -> str:
        """The name of the process that is not the twin."""
        return next(name for name in self.result.wanted if name != PLAIN)

    def voids(self) -> list[str]:
        """Returns why the run proves nothing, if so."""
        reasons = []
        whole = {way.name for way in self.ways if way.whole}
        wanted = self.result.wanted[PLAIN]
        for look in self.result.looks:
            if look.process != PLAIN:
                continue
            where = f"{look.process}, {look.moment}, {look.way}"
            if look.status == BLIND:
                reasons.append(f"{where}: {look.note}.")
            elif look.status == READ and look.way in whole:
                for kind in sorted(self.rules.certain(look.moment, wanted)):
                    found, of = look.found.get(kind, 0), wanted.get(kind, 0)
                    if found < self.rules.least(of) or not of:
                        reasons.append(f"{where}: only {found} of {of} {kind} were found.")
            elif look.status == READ and look.moment == DURING and not look.found:
                reasons.append(f"{where}: nothing was found.")
        tried = {look.way for look in self.result.looks if look.status == READ}
        if not tried & whole:
            reasons.append("no way that reads all of a process could be tried here.")
        others = {look.status for look in self.result.looks if look.process != PLAIN}
        if not others & {READ, REFUSED}:
            reasons.append(f"no way could be tried on the {self.attacked} process.")
        reasons += [
            f"{change.process}, {change.way}: {change.passed} of {change.tries} changes were seen."
            for change in self.result.changes
            if change.process == PLAIN and change.passed < change.tries
        ]
        return reasons

    def failures(self) -> list[str]:
        """Returns what was found of the other process, and not noticed by it."""
        wanted = self.result.wanted[self.attacked]
        by_kind: dict[tuple[str, str], list[Look]] = {}
        for look in (*self.result.looks, *self.result.series):
            if look.process == PLAIN or look.status != READ:
                continue
            for kind, found in sorted(look.found.items()):
                if self._too_many(look, kind, found, wanted.get(kind, 0)):
                    by_kind.setdefault((look.moment, kind), []).append(look)
        failures = []
        for (moment, kind), looks in by_kind.items():
            most = max(looks, key=lambda look: look.found[kind])
            ways = ", ".join(dict.fromkeys(look.way for look in looks))
            places = [place for place in most.places if place.startswith(f"{kind}/")]
            failures.append(
                f"{moment}: up to {most.found[kind]} of {wanted.get(kind, 0)} {kind} were found by "
                f"{ways} ({', '.join(places)}){self._spread(looks, kind)}."
            )
        failures += [
            f"{change.way}: {change.tries - change.noticed} of {change.tries} changes were not "
            f"noticed."
            for change in self.result.changes
            if change.process != PLAIN and change.noticed < change.tries
        ]
        return failures

    def _too_many(self, look: Look, kind: str, found: int, of: int) -> bool:
        units = self.rules.units(kind, look.moment)
        if units is not None and look.units.get(kind, 0) > units:
            return True
        return found > self.rules.allowed(kind, look.moment, of)

    def _spread(self, looks: Sequence[Look], kind: str) -> str:
        """Says of how many units they were, where that is what is wrong."""
        units = self.rules.units(kind, looks[0].moment)
        if units is None:
            return ""
        most = max(look.units.get(kind, 0) for look in looks)
        return f", of {most} {'matrices' if kind == 'weights' else 'layers'} at once"

    def untried(self) -> list[str]:
        """Returns what could not be tried, or saw nothing, and is therefore not clean."""
        lines: dict[str, list[str]] = {}
        for look in self.result.looks:
            if look.status == UNTRIED or (look.status == BLIND and look.process != PLAIN):
                lines.setdefault(f"{look.way}: {look.note}", []).append(look.moment)
        for change in self.result.changes:
            if change.note:
                lines.setdefault(f"{change.way}: {change.note}", [])
        return [
            f"{line} ({', '.join(dict.fromkeys(moments))})" if moments else line
            for line, moments in lines.items()
        ]

    def document(self) -> dict[str, Any]:
        """Returns the results for JSON, in seconds and bytes."""
        return {
            "schema": SCHEMA,
            "void": self.voids(),
            "passed": not self.voids() and not self.failures(),
            "failures": self.failures(),
            "untried": self.untried(),
            **self.settings,
            "wanted": self.result.wanted,
            "looks": [asdict(look) for look in self.result.looks],
            "series": [asdict(look) for look in self.result.series],
            "changes": [asdict(change) for change in self.result.changes],
        }


def moments(looks: Sequence[Look]) -> Iterator[tuple[str, str]]:
    """Yields each (way, moment) once, in order."""
    yield from dict.fromkeys((look.way, look.moment) for look in looks)
