# SPDX-License-Identifier: Apache-2.0
"""A line of the table: one thing that protects a process, or does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

__all__ = ["BAD", "GOOD", "STATES", "UNKNOWN", "WEAK", "Finding", "Line"]

GOOD = "good"  # it protects, as the line says
WEAK = "weak"  # it protects in part, or from some
BAD = "bad"  # it does not protect
UNKNOWN = "unknown"  # it cannot be seen from here, and so counts as no protection

#: Best first.
STATES = (GOOD, WEAK, BAD, UNKNOWN)


class Finding(NamedTuple):
    """What a look at one thing found."""

    state: str
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class Line:
    """One thing that protects a process, or does not."""

    name: str
    state: str  #: "good", "weak", "bad" or "unknown"
    seen: str  #: what was found
    why: str  #: why it matters
    remedy: str  #: how to have the better state; "" for "good"

    def to_dict(self) -> dict[str, str]:
        """Returns the fields by name."""
        return asdict(self)
