# SPDX-License-Identifier: Apache-2.0
"""Look: what one way has seen of one process at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BLIND", "READ", "REFUSED", "UNTRIED", "Look"]

#: It read the process: the marker was found. The process keeps this way out, by a measure that was
#: seen. It ran and did not find the marker, and nothing explains that. It could not be tried.
READ, REFUSED, BLIND, UNTRIED = "read", "refused", "blind", "untried"


@dataclass(frozen=True)
class Look:
    """One look. Only where `status` is READ do the counts say anything."""

    way: str
    moment: str
    process: str
    status: str
    note: str = ""  # why it is not READ; what else there is to say
    found: dict[str, int] = field(default_factory=dict)  # samples by kind
    units: dict[str, int] = field(default_factory=dict)  # layers or matrices that they are of
    places: tuple[str, ...] = ()  # some that were found
    nbytes: int = 0  # that were searched
    seconds: float = 0.0
    at: float | None = None  # seconds of the process's own time, in a series of looks
