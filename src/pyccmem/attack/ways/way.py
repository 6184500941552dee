# SPDX-License-Identifier: Apache-2.0
"""Way: one way to get at the memory of a process. Subject: the process that it is tried on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ... import audit, errors
from ..look import BLIND, READ, UNTRIED, Look
from ..target import Target
from ..wanted import MARKER, Wanted

__all__ = ["DENIED", "Denied", "Subject", "Untried", "Way"]

#: The system did not let this way read the process. Whether that is the process's doing, only its
#: twin tells: the parent makes "refused" or "untried" of it.
DENIED = "denied"

_PLACES = 3  # of each kind are named


class Untried(Exception):
    """The way cannot be tried on this machine, by this user, on this process. Says why."""


class Denied(Exception):
    """The system did not let the process be read. Says how."""


@dataclass(frozen=True)
class Subject:
    """A process, and what is looked for in it."""

    name: str
    pid: int
    wanted: Wanted
    directory: Path  # for what this way writes: 0700, removed at the end
    target: Target | None = None  # that can be asked to do something
    files: bool = False  # also read what mapped files hold


class Way:
    """`name` as in tables and options. `whole`: it reaches all of the process's memory, so that the
    twin's must be found in full. `ends`: the process does not survive it. `costly`: it takes so
    long that it is tried at two moments only, unless it is asked for."""

    name = ""
    title = ""
    whole = True
    ends = False
    costly = False

    def reports(self, subject: Subject) -> list[audit.Report]:
        """Searches what it got. Raises Untried, Denied."""
        raise NotImplementedError

    def look(self, subject: Subject, moment: str) -> Look:
        """Tries it."""
        began = time.perf_counter()

        def seen(status: str, note: str, reports: list[audit.Report]) -> Look:
            found: dict[str, int] = {}
            units: dict[str, int] = {}
            places: dict[str, set[str]] = {}
            for report in reports:
                for kind, count in subject.wanted.found(report).items():
                    found[kind] = max(found.get(kind, 0), count)
                for kind, count in subject.wanted.units(report).items():
                    units[kind] = max(units.get(kind, 0), count)
                for place in subject.wanted.places(report):
                    places.setdefault(place.split("/")[0], set()).add(place)
            return Look(
                way=self.name,
                moment=moment,
                process=subject.name,
                status=status,
                note=note,
                found={kind: count for kind, count in found.items() if kind != MARKER},
                units={kind: count for kind, count in units.items() if kind != MARKER},
                places=tuple(
                    place
                    for kind in sorted(set(places) - {MARKER})
                    for place in sorted(places[kind])[:_PLACES]
                ),
                nbytes=sum(report.bytes_scanned for report in reports),
                seconds=time.perf_counter() - began,
            )

        try:
            reports = self.reports(subject)
        except Untried as reason:
            return seen(UNTRIED, str(reason), [])
        except Denied as reason:
            return seen(DENIED, str(reason), [])
        except errors.NoPermissionError:
            return seen(DENIED, "the system does not let this user read the process", [])
        if not any(MARKER in subject.wanted.found(report) for report in reports):
            return seen(BLIND, "the marker that lies in the process was not found", reports)
        return seen(READ, "", reports)


#: Makes a way.
Maker = Callable[[], Way]
